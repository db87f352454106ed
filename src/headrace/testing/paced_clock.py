"""A clock that goes slower while a shared machine does, told by one piece of work that is done again and again.

Whoever compares what takes minutes each on a machine that others use, too, compares the machine's minutes. By this
clock everything takes what it would take if the machine had kept the pace of the beginning.
"""

from collections import deque
from collections.abc import Callable
from statistics import median

#: Of the work, at the beginning and from then on: their median is the pace.
_FIRST_RUNS, _RUNS = 15, 3


class PacedClock:
    """Call it for the time in seconds.

    Args:
        work: done now and then, which this clock does not count; as much like what is timed as can be.
        clock_s: that is corrected.
        every_s: of that clock, after which the work is done again when somebody looks at the time.
    """

    def __init__(self, work: Callable[[], object], clock_s: Callable[[], float], every_s: float) -> None:
        self._work = work
        self._clock_s = clock_s
        self._every_s = every_s
        self._first_s = median([self._time() for _ in range(_FIRST_RUNS)])
        self._last_s: deque[float] = deque([self._first_s], maxlen=_RUNS)
        self._now_s = 0.0
        self._looked_s = clock_s()
        self._next_s = self._looked_s + every_s

    def __call__(self) -> float:
        """Seconds since the beginning; they never go back."""
        looked_s = self._clock_s()
        self._now_s += (looked_s - self._looked_s) * self._first_s / median(self._last_s)
        if looked_s >= self._next_s:
            self._last_s.append(self._time())
            looked_s = self._clock_s()
            self._next_s = looked_s + self._every_s
        self._looked_s = looked_s
        return self._now_s

    def _time(self) -> float:
        begin_s = self._clock_s()
        self._work()
        return self._clock_s() - begin_s
