"""Which waiting requests share a batch: dynamic programming over the cost table. Pure.

After TurboTransformers' algorithm 3 [1]. Requests are put in order of length; a batch is a run of neighbours in that
order, padded to its longest member; ``best[i]`` is the least cost of the first ``i`` requests. On a table that does
not decrease with length, and where memory does not bind, an optimal partition of this form exists: swapping two
requests between two batches so that the longer batch keeps the longer one lengthens neither, nor does it add padding.

The same recurrence, with every batch's cost counted once for each request that it keeps waiting, gives the least mean
completion time of batches that run one after the other, shortest first. No exchange argument holds there, so other
partitions may be better; ``scripts/bench/partition.py`` measures by how much.

[1] Fang et al., TurboTransformers: An Efficient GPU Serving System For Transformer Models, arXiv:2010.05680.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from headrace.workers.scheduler.cost_grid import CostGrid, Floats, Ints


@dataclass(frozen=True, slots=True)
class Limits:
    """What one batch may hold; a request that alone exceeds a limit still gets a batch of its own.

    Attributes:
        max_rows: requests.
        max_kv_tokens: key-value tokens, prompt plus the most that may be generated, summed over the batch.
        max_tokens: tokens to prefill, padding included where the runtime pads.
    """

    max_rows: int
    max_kv_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Item:
    """A waiting request as the partition sees it.

    Attributes:
        length: tokens to prefill, >= 1.
        kv_tokens: tokens of key-value memory that it may come to need.
        slack_ms: time left until its deadline; infinite where it has none.
        score: place in the queue, in tokens of virtual time; lower is more urgent.
    """

    length: int
    kv_tokens: int
    slack_ms: float = math.inf
    score: float = 0.0


def cut_padded(items: Sequence[Item], grid: CostGrid, limits: Limits, *, mean: bool = False) -> list[list[int]]:
    """Split requests into batches that are padded to their longest member.

    Takes O(n) array operations over at most ``max_rows`` elements. Requests of equal length stay in the order given.

    Args:
        items: the window.
        grid: over the cost table, for at least ``limits.max_rows``.
        limits: of a batch.
        mean: minimise the mean completion time and not the total cost.

    Returns:
        Batches of indices into ``items``, shortest first, each index in exactly one of them; a batch's indices
        increase.
    """
    order = in_length_order(items)
    lengths, kv_tokens = _columns(items, order)
    earliest = _earliest(kv_tokens, limits.max_tokens // lengths, limits)
    rows = [grid.padded(length) for length in lengths.tolist()]
    ends = _cheapest_ends(lambda end, max_rows: rows[end - 1][:max_rows], earliest, mean=mean)
    return _runs(order, ends)


def cut_packed(items: Sequence[Item], grid: CostGrid, limits: Limits, *, mean: bool = False) -> list[list[int]]:
    """Split requests into batches whose tokens lie back to back: runs in the order given, or of length for ``mean``.

    Without padding a batch's members need not resemble each other, so that nobody has to overtake anybody.

    Returns:
        As ``cut_padded``, in the order of the runs.
    """
    order = in_length_order(items) if mean else list(range(len(items)))
    lengths, kv_tokens = _columns(items, order)
    before = np.concatenate(([0], np.cumsum(lengths)))
    most_rows = np.arange(1, len(order) + 1) - _first_within(before, limits.max_tokens)
    earliest = _earliest(kv_tokens, most_rows, limits)
    heaviest = int((before[1:] - before[earliest]).max(initial=0))
    curve = grid.packed(heaviest)
    back = before[::-1]  # back[num_items - i]: tokens of the first i requests

    def costs(end: int, max_rows: int) -> Floats:
        at = len(order) - end
        run_costs: Floats = curve[back[at] - back[at + 1 : at + 1 + max_rows]]
        return run_costs

    ends = _cheapest_ends(costs, earliest, mean=mean)
    return _runs(order, ends)


def in_length_order(items: Sequence[Item]) -> list[int]:
    """Indices by length; equal ones in the order given."""
    return sorted(range(len(items)), key=lambda index: items[index].length)


def _columns(items: Sequence[Item], order: Sequence[int]) -> tuple[Ints, Ints]:
    lengths = np.fromiter((items[index].length for index in order), np.int64, len(order))
    kv_tokens = np.fromiter((items[index].kv_tokens for index in order), np.int64, len(order))
    return lengths, kv_tokens


def _first_within(before: Ints, limit: int) -> Ints:
    """For every end the earliest begin with ``before[end] - before[begin] <= limit``; ``before`` does not decrease."""
    return np.searchsorted(before, before[1:] - limit, side="left")


def _earliest(kv_tokens: Ints, most_rows: Ints, limits: Limits) -> list[int]:
    """The earliest begin of a run that ends behind each request."""
    ends = np.arange(1, len(kv_tokens) + 1)
    kv_before = np.concatenate(([0], np.cumsum(kv_tokens)))
    begins = np.maximum(ends - np.minimum(most_rows, limits.max_rows), _first_within(kv_before, limits.max_kv_tokens))
    earliest: list[int] = np.clip(begins, 0, ends - 1).tolist()
    return earliest


def _cheapest_ends(costs: Callable[[int, int], Floats], earliest: Sequence[int], *, mean: bool) -> list[int]:
    """Where the runs of the cheapest cut end, with 0 in front.

    Args:
        costs: of the runs that end behind a request (the first argument) and hold 1, 2, … up to so many requests (the
            second).
        earliest: the earliest begin for every end.
        mean: a run counts once for each request in it and behind it.
    """
    num_items = len(earliest)
    # From the back, ``best[num_items - i]`` for the first ``i`` requests: shorter runs come first, as in ``costs``.
    best = np.zeros(num_items + 1)
    num_left = np.arange(0.0, num_items + 1)
    num_rows_of = [0] * (num_items + 1)
    at = num_items
    for end, begin in enumerate(earliest, 1):
        max_rows = end - begin
        run_costs = costs(end, max_rows)
        if mean:
            run_costs = run_costs * num_left[at : at + max_rows]
        totals = run_costs + best[at : at + max_rows]
        # The first of equal ones is the shortest, which leaves the full batches in front.
        shortest = totals.argmin()
        at -= 1
        best[at] = totals[shortest]
        num_rows_of[end] = int(shortest) + 1
    ends = [num_items]
    while ends[-1] > 0:
        ends.append(ends[-1] - num_rows_of[ends[-1]])
    return ends[::-1]


def _runs(order: Sequence[int], ends: Sequence[int]) -> list[list[int]]:
    return [sorted(order[begin:end]) for begin, end in pairwise(ends)]
