"""One child process: how it is described, started, tethered to its parent and started again. Used by the supervisor."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from headrace.errors import ConfigurationError

# Both files speak as one.
logger = logging.getLogger("headrace.workers.supervisor")

_MAX_PAUSE_S = 5.0
#: A child that lived this long did start; the next pause is short again.
_LIVED_S = 5.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A process to keep alive.

    Attributes:
        name: for the log.
        argv: its command line; no secrets, a process list shows it.
        environ: its whole environment.
        grace_s: from SIGTERM to SIGKILL.
        ready: asked until it says True before the next stage starts; None: ready once started.
        restart: start it again whenever it exits; False: its exit stops everything, and its status is ``run``'s.
    """

    name: str
    argv: Sequence[str]
    environ: Mapping[str, str]
    grace_s: float
    ready: Callable[[], bool] | None = None
    restart: bool = True


class Child:
    """One spec's process, or the pause before it is started again."""

    def __init__(self, spec: ChildSpec, base_pause_s: float) -> None:
        self.spec = spec
        self._base_pause_s = base_pause_s
        self._pause_s = base_pause_s
        self._started_s = 0.0
        self.restart_at_s: float | None = None
        self.kill_at_s = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Fork and execute.

        Raises:
            ConfigurationError: the program cannot be executed.
        """
        self.restart_at_s = None
        self._started_s = time.monotonic()
        try:
            # A group of its own, so that Ctrl-C in a terminal reaches the supervisor alone, and the order holds.
            self.process = subprocess.Popen(
                list(self.spec.argv), env=dict(self.spec.environ), stdin=subprocess.DEVNULL, process_group=0,
                preexec_fn=_tether(),
            )  # fmt: skip
        except (FileNotFoundError, PermissionError) as error:
            raise ConfigurationError(f"cannot start {self.spec.name}: {error}") from error
        except OSError as error:  # memory or processes are short, which may pass
            self.schedule_restart(str(error))
        else:
            logger.info("%s started, process %d", self.spec.name, self.process.pid)

    def exit_status(self) -> int | None:
        """The status of a process that has ended, told once; negative for a signal."""
        if self.process is None or (status := self.process.poll()) is None:
            return None
        self.process = None
        return status

    def schedule_restart(self, why: str) -> None:
        """Set the moment of the next start, further away while starts keep failing."""
        now_s = time.monotonic()
        if now_s - self._started_s >= _LIVED_S:
            self._pause_s = self._base_pause_s
        self.restart_at_s = now_s + self._pause_s
        logger.warning("%s: %s; it starts again in %.1f s", self.spec.name, why, self._pause_s)
        self._pause_s = min(max(self._pause_s * 2, 0.1), _MAX_PAUSE_S)

    def send(self, number: int) -> None:
        """Pass on a signal, if there is a process."""
        if self.process is not None:
            self.process.send_signal(number)


def _tether() -> Callable[[], None] | None:
    """What a child runs before it executes its program, so that the kernel kills it when its parent is gone.

    The library is loaded before the fork, and a supervisor has one thread, so that no lock can be held by a thread
    that the fork left behind. The signal is SIGKILL, the only one that a hanging child obeys.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent_pid = os.getpid()

    def tether() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent_pid:  # it died before the call
            os._exit(1)

    return tether


def describe(status: int) -> str:
    """An exit status in words."""
    return f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
