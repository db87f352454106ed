"""What a batch costs a worker beside computing it: its cut, its claim, its answers. Learnt from busy moments. Pure.

Whoever does that beside an engine that computes costs it nothing; where all share a core, every batch does. So it is
not told by anybody's sums, but seen: by how much longer than its own computing a batch keeps an engine for which the
next one waits. Part of that grows with the batch (its rows' answers, other programs that take the core), part does
not, and that part is what one more batch costs. The two are told apart by Tukey's resistant line (J. W. Tukey,
Exploratory Data Analysis, 1977, chapter 11), which a few moments of a paused machine do not move.
"""

from collections import deque
from collections.abc import Sequence
from statistics import median

#: The newest batches count; of fewer than the least nothing is told.
_MAX_BATCHES, _MIN_BATCHES = 128, 24
#: What was seen longer ago says nothing of the machine as it is: an hour that was busy must not price idle ones.
_MEMORY_S = 60.0


class Overhead:
    """Of the batches of one engine."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float, float]] = deque(maxlen=_MAX_BATCHES)

    def observe(self, own_ms: float, turn_ms: float, now_s: float) -> None:
        """Take in one batch that was at hand when the one before it ended.

        Args:
            own_ms: of computing it.
            turn_ms: from the end of the one before to its own.
            now_s: when it ended, by any clock.
        """
        self._seen.append((now_s, own_ms, max(0.0, turn_ms - own_ms)))

    def batch_ms(self, now_s: float) -> float:
        """Of a batch, however much it computes; 0 as long as too few were seen of late.

        Where all batches are alike, all that they cost beside computing counts.
        """
        points = sorted((own, beside) for seen_s, own, beside in self._seen if seen_s >= now_s - _MEMORY_S)
        if len(points) < _MIN_BATCHES:
            return 0.0
        third = len(points) // 3
        (left, low_ms), (right, high_ms) = _middle(points[:third]), _middle(points[-third:])
        slope = max(0.0, (high_ms - low_ms) / (right - left)) if right > left else 0.0
        return max(0.0, median(beside_ms - slope * own_ms for own_ms, beside_ms in points))


def _middle(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return median(x for x, _ in points), median(y for _, y in points)
