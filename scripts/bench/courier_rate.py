"""How many tokens a second one courier takes from its engine to Redis, and what of a core that costs.

The engine is a stand-in that gives each of 256 rows a token a step, as fast as it is told; scheduler, courier and
server are the real ones, with a tokenizer of Qwen3's size. Nobody reads the results, so that only the fleet works.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from headrace.bench.model_folder import write_model_without_weights
from headrace.config import Settings
from headrace.producer import Client
from headrace.testing.full_shapes import Q06
from headrace.testing.rows import Report, arguments
from headrace.testing.servers import Server
from headrace.workers.channel import SOCKET_VARIABLE
from headrace.workers.model_store.store import resolve

_PROFILE = """
import cProfile, runpy
cProfile.run("runpy.run_module('headrace.workers.courier', run_name='__main__')", {!r})
"""


def main() -> None:
    """Measure paces one after the other."""
    options = arguments(
        str(__doc__),
        [("rows", 256, "requests at once"), ("tokens", 600, "each"), ("step-ms", 4, "of the engine; 0: its fastest"),
         ("profile", "", "file for cProfile's account of the courier")],
    )  # fmt: skip
    with Server("valkey") as server, tempfile.TemporaryDirectory(prefix="hr-rate-") as folder:
        write_model_without_weights(Path(folder), Q06)
        (Path(folder) / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
        settings = Settings.load(redis_url=server.url, model=folder, max_context_tokens=4096, log_level="warning",
                                 drain_ms=0)  # fmt: skip
        path = f"{folder}/s"
        environ = settings.to_environ() | {SOCKET_VARIABLE: path}
        revision = resolve(folder, Path(folder)).revision
        python = [sys.executable, "-P"]
        engine = ["-m", "headrace.testing.fake_engine", path, revision, str(options.step_ms), str(options.rows),
                  str(Q06["vocab_size"])]  # fmt: skip
        courier = ["-c", _PROFILE.format(options.profile)] if options.profile else ["-m", "headrace.workers.courier"]
        parts = [engine, courier, ["-m", "headrace", "scheduler"]]
        processes = [subprocess.Popen([*python, *part], env=environ) for part in parts]
        try:
            with Client(settings) as client:
                handles = [
                    client.submit([1, 2, 3 + n], max_tokens=options.tokens, ignore_eos=True, temperature=0)
                    for n in range(options.rows)
                ]
                next(handles[-1].stream(timeout_s=60))
                begin_s, cpu_s, server_s = time.perf_counter(), _cpu_s(processes[1].pid), _cpu_s(server.pid)
                for handle in handles:
                    handle.result(timeout_s=60)
                taken_s = time.perf_counter() - begin_s
                cpu_s, server_s = _cpu_s(processes[1].pid) - cpu_s, _cpu_s(server.pid) - server_s
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait()
    num_tokens = options.rows * options.tokens
    report = Report("scripts/bench/courier_rate.py")
    case = f"courier/{options.rows}x{options.step_ms}ms"
    report.add(case, "tokens_per_s", num_tokens / taken_s, "tokens/s")
    report.add(case, "tokens_per_courier_core_s", num_tokens / cpu_s, "tokens/s")
    report.add(case, "tokens_per_server_core_s", num_tokens / server_s, "tokens/s")
    report.finish(save=options.save)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
