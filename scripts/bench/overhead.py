"""What the queue costs: submit to first token through an idle fleet, against the engine alone.

The engine alone is the same engine process behind its Unix socket, asked directly: prompt in, first token out. Both are
measured in turn in one run, on the same prompt, so that whatever else the machine does hits both. The goal is 15 ms.
"""

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from headrace.config import Settings
from headrace.job import SamplingParams
from headrace.producer import Client
from headrace.testing.fleet import Fleet
from headrace.testing.rows import Report, arguments
from headrace.testing.servers import Server
from headrace.workers.channel import Add, Decoder, Tokens, encode
from headrace.workers.engine.settings import ENVIRONMENT_VARIABLE, EngineSettings
from headrace.workers.model_store.store import default_cache_dir, resolve
from headrace.workers.text.tokenizer import Tokenizer

PROMPT = "The capital of France is"
GREEDY = SamplingParams(1, 0, 0.0, 0, 1.0, 0.0, 0, (), (), ignore_eos=True)


class BareEngine:
    """An engine process of its own, and a socket to it."""

    def __init__(self, settings: Settings, folder: str) -> None:
        model = resolve(settings.model, default_cache_dir())
        path = f"{folder}/engine.sock"
        engine = EngineSettings(path, str(model.path), model.revision, num_threads=1, parent_pid=os.getpid())
        environ = os.environ | {ENVIRONMENT_VARIABLE: engine.to_json(), "GOMP_SPINCOUNT": "10000"}
        command = [sys.executable, "-P", "-m", "headrace.workers.engine.process"]
        self.process = subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)
        while not Path(path).exists():
            time.sleep(0.05)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._decoder = Decoder()
        self._row = 0
        self._socket.recv(1 << 16)

    def first_token_s(self, prompt_ids: tuple[int, ...]) -> float:
        """Seconds from the request to its only token."""
        self._row += 1
        start_s = time.perf_counter()
        self._socket.sendall(encode(Add(self._row, prompt_ids, (), GREEDY)))
        while True:
            for message in self._decoder.feed(self._socket.recv(1 << 16)):
                if isinstance(message, Tokens):
                    return time.perf_counter() - start_s


def through_queue_s(client: Client) -> float:
    """Seconds from the submission to the first chunk in the client's hands."""
    start_s = time.perf_counter()
    next(client.submit(PROMPT, max_tokens=1, temperature=0, ignore_eos=True).stream())
    return time.perf_counter() - start_s


def main() -> None:
    options = arguments(str(__doc__), [("rounds", 200, "requests each way")])
    with Server("valkey") as server, tempfile.TemporaryDirectory() as folder:
        settings = Settings.load(redis_url=server.url, num_threads=1, max_context_tokens=2_048, measure_ms=0)
        model = resolve(settings.model, default_cache_dir())
        (prompt_ids,) = Tokenizer.from_folder(model.path).encode_batch([PROMPT], add_special_tokens=True)
        with Fleet(settings), Client(settings) as client:
            bare = BareEngine(settings, folder)
            queued, alone = [], []
            for i in range(options.rounds + 10):
                a, q = bare.first_token_s(prompt_ids), through_queue_s(client)
                if i >= 10:
                    alone.append(a * 1000)
                    queued.append(q * 1000)
            bare.process.terminate()
            bare.process.wait()
    report = Report("scripts/bench/overhead.py")
    overhead = statistics.median(queued) - statistics.median(alone)
    report.add("overhead/first-token", "median_ms", statistics.median(queued), "ms", peer="engine alone",
               peer_value=statistics.median(alone))  # fmt: skip
    report.add("overhead/first-token", "p99_ms", statistics.quantiles(queued, n=100)[98], "ms", peer="engine alone",
               peer_value=statistics.quantiles(alone, n=100)[98])  # fmt: skip
    report.add("overhead/first-token", "overhead_ms", overhead, "ms", peer="goal", peer_value=15.0)
    report.finish(save=options.save)


if __name__ == "__main__":
    main()
