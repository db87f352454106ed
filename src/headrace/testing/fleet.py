"""A whole fleet as processes, started by ``headrace up`` on a server that runs already."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Literal, Self

from headrace.broker import Broker
from headrace.config import Settings
from headrace.errors import HeadraceError

Part = Literal["supervisor", "scheduler", "worker", "courier", "engine"]

#: For what never comes: two busy cores take a minute and more to import torch several times at once.
_START_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 60.0
_POLL_S = 0.02


class FleetError(HeadraceError):
    """Raised when a fleet does not come up, or not down; the message ends with what it logged."""


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll a condition.

    Raises:
        FleetError: it did not come true in time.
    """
    end_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end_s:
            raise FleetError(f"waited {timeout_s:g} s for {what}")
        time.sleep(_POLL_S)


class Fleet:
    """A scheduler and workers with a supervisor over them; use it in a ``with``."""

    def __init__(self, settings: Settings, environ: Mapping[str, str] | None = None) -> None:
        """Prepare a fleet.

        Args:
            settings: ``redis_url`` names the server, ``workers`` how many there are.
            environ: variables for its processes beside the settings.
        """
        self.settings = settings
        self.broker = Broker.connect(settings)
        self._environ = settings.to_environ() | dict(environ or {})
        self._folder = tempfile.TemporaryDirectory(prefix="headrace-fleet-")
        self._log: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What its processes have said so far."""
        path = Path(self._folder.name) / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> Self:
        """Start it and wait until a scheduler leads and every worker has its model loaded.

        Raises:
            FleetError: that takes too long, or the fleet ends.
        """
        self._log = (Path(self._folder.name) / "log").open("wb")
        command = [sys.executable, "-P", "-m", "headrace", "up"]
        self._process = subprocess.Popen(
            command, env=self._environ, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT
        )
        try:
            self.wait_ready()
        except FleetError as error:
            self.kill()
            message = f"{error}; it logged: {self.log[-3000:]}"
            self.close()
            raise FleetError(message) from error
        return self

    def wait_ready(self) -> None:
        """Wait until every part is there, at the start or after a kill.

        Raises:
            FleetError: that takes too long, or the fleet has ended.
        """
        wait_until(self._is_ready, _START_TIMEOUT_S, "the fleet to be ready")

    def _is_ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise FleetError("the fleet has ended")
        return bool(self.pids("scheduler")) and all(
            len(self.pids(part)) >= self.settings.workers for part in ("courier", "engine")
        )

    def pids(self, part: Part) -> list[int]:
        """Process ids of a part, those that are alive and have said so in Redis."""
        if part == "supervisor":
            return [self._process.pid] if self._process is not None else []
        if part == "scheduler":
            leader = self.broker.leadership.holder()
            found = [int(leader.rsplit("-", 2)[1])] if leader else []
        else:
            workers = self.broker.living.workers(max_age_ms=self.settings.lease_ms)
            found = [int(worker.details[f"{part}_pid"] or 0) for worker in workers]
        return [pid for pid in found if _is_alive(pid)]

    def kill_part(self, part: Part) -> int:
        """SIGKILL one process of a part and return its id."""
        pid = self.pids(part)[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def stop(self) -> int:
        """Let it drain and end; return its exit status.

        Raises:
            FleetError: it does not end.
        """
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise FleetError(f"it does not stop; it logged: {self.log[-3000:]}") from error

    def kill(self) -> None:
        """End its supervisor as a crash would, which ends all of it."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End it, in order if it can, and remove what it left."""
        try:
            self.stop()
        finally:
            self.kill()
            self.broker.close()
            if self._log is not None:
                self._log.close()
            self._folder.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
