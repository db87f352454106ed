"""``start/<shape>`` and ``start-cold/<shape>``: from the start of an engine process to its first token.

A start is warm when its kernels are compiled and its weights are in the page cache; cold when neither is so, as far as
the file system lets go of pages (a folder in memory keeps them).
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from headrace.bench.bench import Bench
from headrace.bench.case import Case, Figure
from headrace.bench.machine import Machine
from headrace.bench.workload import Requests
from headrace.errors import MeasurementError
from headrace.workers.channel import Decoder, Tokens, encode
from headrace.workers.engine.settings import ENVIRONMENT_VARIABLE, EngineSettings
from headrace.workers.worker import ON_GPU

_PROMPT = 16
_PEER = "vLLM 0.24.0, another day"
_TIMEOUT_S = 600.0
_POLL_S = 0.001


def cases(shape: str) -> list[Case]:
    """The cases of one shape."""
    return [
        Case(f"start/{shape}", shape, partial(_warm, shape=shape)),
        Case(f"start-cold/{shape}", shape, partial(_cold, shape=shape)),
    ]


def _warm(bench: Bench, *, shape: str) -> Iterator[Figure]:
    with bench.model(shape) as folder:
        prompt = bench.requests(shape).prompt(_PROMPT)
        first_token_s(folder, prompt, bench.machine, {})
        seconds = [first_token_s(folder, prompt, bench.machine, {}) for _ in bench.rounds()]
    yield Figure.median("seconds", seconds, "s", _PEER, 30.0)


def _cold(bench: Bench, *, shape: str) -> Iterator[Figure]:
    seconds = []
    with bench.model(shape) as folder:
        prompt = bench.requests(shape).prompt(_PROMPT)
        for _ in bench.rounds():
            _forget(folder)
            with tempfile.TemporaryDirectory() as cache:
                seconds.append(first_token_s(folder, prompt, bench.machine, {"HEADRACE_CACHE_DIR": cache}))
    yield Figure.median("seconds", seconds, "s", _PEER, 70.0)


def first_token_s(folder: Path, prompt: tuple[int, ...], machine: Machine, environ: Mapping[str, str]) -> float:
    """Start an engine process, ask for a token, and end the process.

    Args:
        folder: of the model.
        prompt: token ids.
        machine: where the engine computes.
        environ: variables beside this process's own.

    Returns:
        Seconds from the start of the process to the token.

    Raises:
        MeasurementError: the engine ended, or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="hr-start-") as meeting:
        path = f"{meeting}/s"
        settings = EngineSettings(
            path, str(folder), "", str(machine.device), machine.dtype_name, max_rows=ON_GPU.max_rows,
            kv_tokens=0 if machine.device.type == "cuda" else 4096, step_tokens=ON_GPU.step_tokens,
            parent_pid=os.getpid(), log_level="warning",
        )  # fmt: skip
        variables = os.environ | environ | {ENVIRONMENT_VARIABLE: settings.to_json()}
        begin_s = time.perf_counter()
        command = [sys.executable, "-P", "-m", "headrace.workers.engine.process"]
        process = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL)
        try:
            with _connected(process, path, begin_s) as connection:
                _first_token(connection, prompt)
                return time.perf_counter() - begin_s
        finally:
            process.terminate()
            process.wait()


def _connected(process: "subprocess.Popen[bytes]", path: str, begin_s: float) -> socket.socket:
    while time.perf_counter() - begin_s < _TIMEOUT_S:
        if process.poll() is not None:
            raise MeasurementError(f"the engine ended with status {process.returncode} before it listened")
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_TIMEOUT_S)
        with suppress(FileNotFoundError, ConnectionRefusedError):
            connection.connect(path)
            return connection
        connection.close()
        time.sleep(_POLL_S)
    raise MeasurementError(f"the engine did not listen within {_TIMEOUT_S:g} s")


def _first_token(connection: socket.socket, prompt: tuple[int, ...]) -> None:
    connection.sendall(encode(Requests(len(prompt)).add(prompt, 1)))
    decoder = Decoder()
    while data := connection.recv(1 << 16):
        if any(isinstance(message, Tokens) and message.tokens for message in decoder.feed(data)):
            return
    raise MeasurementError("the engine ended before its first token")


def _forget(folder: Path) -> None:
    """Ask the system to drop a folder's pages."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
