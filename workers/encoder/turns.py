"""How long batches keep an engine, and how much of that it computes."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepTime:
    """Of one step.

    Attributes:
        step_ms: by the clock.
        own_ms: of it, what the engine itself computed.
    """

    step_ms: float
    own_ms: float


@dataclass(frozen=True, slots=True)
class Turn:
    """One batch of an engine that had the next one at hand.

    Attributes:
        own_ms: of its steps.
        turn_ms: from the end of the batch before it to its own.
    """

    own_ms: float
    turn_ms: float


class TurnClock:
    """Times the steps and batches of one engine.

    Args:
        own_clock_s: goes on while the engine computes, and not while others take its core.
        clock_s: that everybody's time goes by.
    """

    def __init__(self, own_clock_s: Callable[[], float], clock_s: Callable[[], float] = time.perf_counter) -> None:
        self._own_clock_s = own_clock_s
        self._clock_s = clock_s
        self._last_end_s: float | None = None
        self._own_ms = 0.0
        self._begin_s = self._own_begin_s = 0.0

    def rest(self) -> None:
        """There is nothing to compute: the batch that comes next was not at hand."""
        self._last_end_s, self._own_ms = None, 0.0

    def begin(self) -> None:
        """A step begins."""
        self._own_begin_s, self._begin_s = self._own_clock_s(), self._clock_s()

    def end(self) -> StepTime:
        """The step has ended; say what it took."""
        step_ms = (self._clock_s() - self._begin_s) * 1000
        own_ms = min(step_ms, (self._own_clock_s() - self._own_begin_s) * 1000)
        self._own_ms += own_ms
        return StepTime(step_ms, own_ms)

    def end_batch(self) -> Turn | None:
        """A batch has ended with the last step; say what it took, where the engine had not rested before it."""
        end_s, last_end_s, own_ms = self._clock_s(), self._last_end_s, self._own_ms
        self._last_end_s, self._own_ms = end_s, 0.0
        return None if last_end_s is None else Turn(own_ms, (end_s - last_end_s) * 1000)
