"""A window cut into batches in the order in which they are to run, and what that is predicted to cost. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from headrace.workers.scheduler.cost_grid import CostGrid
from headrace.workers.scheduler.partition import Item

#: Who lets a request wait leaves so many times the predicted cost: workers have other rows, and tables err.
DOUBT = 2.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that share a prefill.

    Attributes:
        members: increasing indices into the window.
        cost_ms: predicted.
    """

    members: tuple[int, ...]
    cost_ms: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Batches in the order in which they run, each request of the window in exactly one.

    Attributes:
        batches: the first one first.
        packed: they are priced without padding, because that is cheaper on the runtime at hand.
        alternative_ms: total cost of the way that was not taken, padded or packed; None where there was no choice.
    """

    batches: tuple[Batch, ...]
    packed: bool = False
    alternative_ms: float | None = None

    @property
    def total_ms(self) -> float:
        """Time that one worker needs for all batches."""
        return sum(batch.cost_ms for batch in self.batches)

    @property
    def mean_completion_ms(self) -> float:
        """Mean over the requests of the moment at which their batch ends, one batch after the other; 0 of nothing."""
        ends = accumulate(batch.cost_ms for batch in self.batches)
        num_requests = sum(len(batch.members) for batch in self.batches)
        waits = sum(end * len(batch.members) for end, batch in zip(ends, self.batches, strict=True))
        return waits / num_requests if num_requests else 0.0

    def num_missed(self, items: Sequence[Item]) -> int:
        """Requests of the window whose batch ends past their deadline, one batch after the other."""
        ends = accumulate(batch.cost_ms for batch in self.batches)
        return sum(
            items[index].slack_ms < end
            for end, batch in zip(ends, self.batches, strict=True)
            for index in batch.members
        )

    def spare_ms(self, slacks_ms: Sequence[float]) -> float:
        """How much later the first batch may begin, so that prefills may take ``DOUBT`` times what is predicted.

        Args:
            slacks_ms: a request of the window each: how long from now its prefill may end; infinite where it may take
                as long as it likes.

        Returns:
            Negative where a batch ends too late, or nearly, even now; infinite where no request is in a hurry.
        """
        ends = accumulate(batch.cost_ms for batch in self.batches)
        spare = (
            slacks_ms[index] - DOUBT * end
            for end, batch in zip(ends, self.batches, strict=True)
            for index in batch.members
        )
        return min(spare, default=math.inf)


def padded_batches(cut: Sequence[Sequence[int]], items: Sequence[Item], grid: CostGrid) -> list[Batch]:
    """Price batches that are padded to their longest member."""
    return [
        Batch(tuple(members), float(grid.padded(max(items[index].length for index in members))[len(members) - 1]))
        for members in cut
    ]


def packed_batches(cut: Sequence[Sequence[int]], items: Sequence[Item], grid: CostGrid) -> list[Batch]:
    """Price batches whose tokens lie back to back."""
    num_tokens = [sum(items[index].length for index in members) for members in cut]
    curve = grid.packed(max(num_tokens, default=0))
    return [Batch(tuple(members), float(curve[count])) for members, count in zip(cut, num_tokens, strict=True)]
