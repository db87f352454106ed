"""The patience of an rq worker with a server whose memory is full, where RQ's own ends with its first write."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("headrace.rq_worker")

_PAUSE_S = 0.5


class Room:
    """Waits until there is room; what a job has computed is not lost meanwhile, for it is in its requests' results."""

    def __init__(self) -> None:
        self._until_s = math.inf
        self._is_told = False
        self._last_wait_s = -math.inf

    def wait(self, error: Exception) -> bool:
        """Pause and return True, or False if nobody waits any more."""
        now_s = time.monotonic()
        if now_s >= self._until_s:
            return False
        if not self._is_told:
            logger.warning("the server's memory is full; waiting until there is room: %s", error)
            self._is_told = True
        time.sleep(_PAUSE_S)
        self._last_wait_s = time.monotonic()
        return True

    def end_after(self, time_s: float) -> None:
        """Wait no longer than this, whatever for."""
        self._until_s = time.monotonic() + time_s

    def was_waited_for(self, within_s: float) -> bool:
        """Whether some command had to wait so lately; if none had, the next wait is told again."""
        is_late = time.monotonic() - self._last_wait_s < within_s
        self._is_told = self._is_told and is_late
        return is_late

    @contextmanager
    def not_waited_for(self) -> Iterator[None]:
        """Give commands up at once."""
        before_s, self._until_s = self._until_s, -math.inf
        try:
            yield
        finally:
            self._until_s = before_s
