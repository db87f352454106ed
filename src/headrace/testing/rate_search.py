"""The largest rate at which something holds, and percentiles. Pure; what a trial is, its caller knows."""

import math
from collections.abc import Callable, Sequence

#: A search that has come so far from its first guess gives up.
_MAX_DISTANCE = 1024


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that so large a share of them does not exceed; there is at least one."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def critical_rate(holds: Callable[[float], bool], guess: float, *, stride: float, precision: float) -> float:
    """Find the largest rate that holds: stride up or down from a guess, then bisect.

    Args:
        holds: tries a rate; it is taken to hold at all rates below one that holds.
        guess: where to begin, > 0.
        stride: factor between the rates tried until one holds and one does not, > 1.
        precision: the answer is the largest rate that held, and one larger by at most this factor did not, > 1.

    Raises:
        ValueError: everything holds, as where a trial is shorter than its goal, or nothing does: up to a thousand times
            the guess, and down to a thousandth.
    """
    low = high = guess
    if holds(guess):
        high *= stride
        while holds(high):
            if high > guess * _MAX_DISTANCE:
                raise ValueError(f"everything holds, even a rate of {high:g}: is the trial too short for its goal?")
            low, high = high, high * stride
    else:
        low /= stride
        while not holds(low):
            if low * _MAX_DISTANCE < guess:
                raise ValueError(f"nothing holds, not even a rate of {low:g}")
            low, high = low / stride, low
    while high / low > precision:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
