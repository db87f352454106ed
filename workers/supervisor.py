"""One process that keeps others alive: starts them in stages, restarts what dies, stops them in reverse order.

``headrace up`` runs one over broker, scheduler and workers, a worker process one over its engine and its courier. The
main thread waits on the wake-up descriptor of the signals and on nothing else, so that there is no thread, no poll
while nothing happens, and no moment at which a signal could be missed.
"""

import logging
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from headrace.errors import CONFIGURATION_STATUS
from headrace.workers.child import Child, ChildSpec, describe

logger = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_READY_POLL_S = 0.05
#: What a second signal leaves to each child that still has to stop.
_HURRIED_GRACE_S = 2.0


class Supervisor:
    """Keeps the children of all stages alive until a signal, a configuration error or a final child ends it.

    Children stop in the reverse order of their stages: SIGTERM, their grace, SIGKILL. A second signal is forwarded
    to those being stopped and leaves two seconds. On Linux the kernel kills children whose supervisor is killed
    (PR_SET_PDEATHSIG), and theirs if they are supervisors. On macOS there is no such promise of the kernel: after
    ``kill -9`` of a supervisor its children live on and have to be stopped by hand.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[ChildSpec]],
        restart_pause_s: float,
        when_ready: Callable[[], None] | None = None,
    ) -> None:
        self._stages = [[Child(spec, restart_pause_s) for spec in stage] for stage in stages]
        self._when_ready = when_ready
        self._started: list[list[Child]] = []
        self._num_signals = 0
        self._hurried = False
        self._outcome: int | None = None
        self._wake_fd = -1

    def run(self) -> int:
        """Supervise until it is over; call it on the main thread.

        Returns:
            0 after a signal, 2 if a child has met a configuration error, else the status of a child that is not to
            be restarted.

        Raises:
            ConfigurationError: a child's program cannot be executed; everything has been stopped.
        """
        with self._signals():
            try:
                self._start_stages()
                while not self._over:
                    self._wait(self._next_restart_s())
                    self._look_after()
            finally:
                self._stop_stages()
        return self._outcome or 0

    @property
    def _over(self) -> bool:
        return self._num_signals > 0 or self._outcome is not None

    def _start_stages(self) -> None:
        for stage in self._stages:
            if self._over:
                return
            self._started.append(stage)
            for child in stage:
                child.start()
            waiting = [child for child in stage if child.spec.ready is not None]
            while waiting and not self._over:
                self._wait(_READY_POLL_S)
                self._look_after()
                waiting = [c for c in waiting if c.process is None or c.spec.ready is None or not c.spec.ready()]
        if self._when_ready is not None and not self._over:
            self._when_ready()

    def _look_after(self) -> None:
        """Notice deaths, and start again what has paused long enough."""
        for child in (child for stage in self._started for child in stage):
            status = child.exit_status()
            if status is not None:
                if status == CONFIGURATION_STATUS or not child.spec.restart:
                    logger.info("%s: %s; everything stops", child.spec.name, describe(status))
                    self._outcome = status if status >= 0 else 128 - status
                else:
                    child.schedule_restart(describe(status))
            elif not self._over and child.restart_at_s is not None and child.restart_at_s <= time.monotonic():
                child.start()

    def _next_restart_s(self) -> float | None:
        moments = [c.restart_at_s for stage in self._started for c in stage if c.restart_at_s is not None]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _stop_stages(self) -> None:
        for stage in reversed(self._started):
            self._stop([child for child in stage if child.process is not None])

    def _stop(self, running: list[Child]) -> None:
        for child in running:
            child.send(signal.SIGTERM)
            grace_s = min(child.spec.grace_s, _HURRIED_GRACE_S) if self._hurried else child.spec.grace_s
            child.kill_at_s = time.monotonic() + grace_s
        num_heard = self._num_signals
        while running:
            self._wait(max(0.0, min(child.kill_at_s for child in running) - time.monotonic()))
            now_s = time.monotonic()
            if self._num_signals > num_heard:
                num_heard, self._hurried = self._num_signals, True
                for child in running:
                    child.send(signal.SIGTERM)
                    child.kill_at_s = min(child.kill_at_s, now_s + _HURRIED_GRACE_S)
            for child in running:
                if (status := child.exit_status()) is not None:
                    logger.info("%s stopped (%s)", child.spec.name, describe(status))
                elif child.kill_at_s <= now_s:
                    logger.warning("%s did not stop in time and is killed", child.spec.name)
                    child.send(signal.SIGKILL)
                    child.kill_at_s = now_s + _HURRIED_GRACE_S
            running = [child for child in running if child.process is not None]

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Have signals wake ``_wait``; afterwards all is as before."""
        self._wake_fd, write_fd = os.pipe()
        os.set_blocking(self._wake_fd, False)
        os.set_blocking(write_fd, False)
        old_fd = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        # nohup has SIGHUP ignored: then a closed terminal is no reason to stop.
        wanted = [n for n in _STOP_SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        old = {number: signal.signal(number, _ignore) for number in (*wanted, signal.SIGCHLD)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old_fd)
            os.close(write_fd)
            os.close(self._wake_fd)

    def _wait(self, timeout_s: float | None) -> None:
        """Sleep until a signal comes or the time is over, and count the signals that ask for an end."""
        if select.select([self._wake_fd], [], [], timeout_s)[0]:
            self._num_signals += sum(number in _STOP_SIGNALS for number in os.read(self._wake_fd, 4096))


def _ignore(number: int, frame: object) -> None:
    """A handler, because only a signal that has one reaches the wake-up descriptor."""
