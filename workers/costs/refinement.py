"""A cost table that follows what steps really take. Pure.

Every observation multiplies costs by a power of observed / predicted, which is an exponentially weighted mean of their
logarithms: the points around it take all of the correction, the others most of it, for a table that is wrong in one
place is likely wrong by the same factor elsewhere, and the scheduler would never try what seems too dear. A ratio
counts for at most ``MAX_RATIO``, so that one step of a machine that was paused moves a cost by a few percent only.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from headrace.workers.costs.building import isotonic
from headrace.workers.costs.table import CostTable

#: Weight of one observation at the point where it was made.
RATE = 0.1
#: How much of that all other points take over.
SPREAD = 0.7
MAX_RATIO = 2.0
#: Costs stay between these, whatever is observed.
_MIN_MS, _MAX_MS = 1e-3, 1e7


class Refiner:
    """A table, and how it changes by what is seen.

    Attributes:
        table: as it is now.
    """

    def __init__(self, table: CostTable) -> None:
        self.table = table

    def observe_packed(self, num_tokens: int, cost_ms: float) -> None:
        """Take in that tokens back to back took so long; nothing is learnt where nothing packs."""
        table = self.table
        if not table.packs:
            return
        weights = _hat(table.packed_tokens, num_tokens)
        factor = _factor(cost_ms, table.packed_cost(num_tokens))
        line = [_moved(cost, factor, weight) for cost, weight in zip(table.packed_ms, weights, strict=True)]
        self.table = CostTable(table.lengths, table.batch_sizes, table.cost_ms, table.packed_tokens, isotonic(line))

    def observe_padded(self, length: int, num_rows: int, cost_ms: float) -> None:
        """Take in that so many rows of one length, or near to it, took so long."""
        table = self.table
        by_length, by_rows = _hat(table.lengths, length), _hat(table.batch_sizes, num_rows)
        factor = _factor(cost_ms, table.cost(length, num_rows))
        columns = []
        for j, across in enumerate(by_rows):
            column = [
                _moved(row[j], factor, along * across) for row, along in zip(table.cost_ms, by_length, strict=True)
            ]
            columns.append(isotonic(column))
        grid = tuple(zip(*columns, strict=True))
        self.table = CostTable(table.lengths, table.batch_sizes, grid, table.packed_tokens, table.packed_ms)


def change(old: CostTable, new: CostTable) -> float:
    """How far two tables are apart where they differ most: 0.1 is ten percent; infinite if their points differ."""
    if (old.lengths, old.batch_sizes, old.packed_tokens) != (new.lengths, new.batch_sizes, new.packed_tokens):
        return math.inf
    pairs = [*zip(old.packed_ms, new.packed_ms, strict=True)]
    for old_row, new_row in zip(old.cost_ms, new.cost_ms, strict=True):
        pairs += zip(old_row, new_row, strict=True)
    return max(max(a, b, _MIN_MS) / max(min(a, b), _MIN_MS) for a, b in pairs) - 1.0


def _hat(points: Sequence[int], value: int) -> list[float]:
    """How near each point is to a value: the weights of linear interpolation, and beyond the ends all of it."""
    weights = [0.0] * len(points)
    if value <= points[0]:
        weights[0] = 1.0
        return weights
    for i, (low, high) in enumerate(pairwise(points)):
        if low <= value <= high:
            weights[i + 1] = (value - low) / (high - low)
            weights[i] = 1.0 - weights[i + 1]
            return weights
    weights[-1] = 1.0
    return weights


def _factor(observed_ms: float, predicted_ms: float) -> float:
    ratio = max(observed_ms, _MIN_MS) / max(predicted_ms, _MIN_MS)
    return min(max(ratio, 1 / MAX_RATIO), MAX_RATIO)


def _moved(cost_ms: float, factor: float, weight: float) -> float:
    moved: float = max(cost_ms, _MIN_MS) * factor ** (RATE * (SPREAD + (1 - SPREAD) * weight))
    return min(max(moved, _MIN_MS), _MAX_MS)
