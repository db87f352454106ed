"""Which waiting requests share a batch: dynamic programming over the cost table. Pure.

After TurboTransformers' algorithm 3 (arXiv:2010.05680). Requests are put in order of length; a batch is a run of
neighbours in that order, padded to its longest member; ``best[i]`` is the least total cost of the first ``i`` requests.
On a table that does not decrease with length, and where memory does not bind, an optimal partition of this form exists:
swapping two requests between two batches so that the longer batch keeps the longer one lengthens neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from headrace.workers.costs.table import CostTable


@dataclass(frozen=True, slots=True)
class Limits:
    """What one batch may hold; a request that alone exceeds ``max_tokens`` still gets a batch of its own.

    Attributes:
        max_rows: requests.
        max_tokens: key-value tokens, prompt plus the most that may be generated, summed over the batch.
    """

    max_rows: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Item:
    """A waiting request as the partition sees it.

    Attributes:
        length: tokens to prefill.
        kv_tokens: tokens of key-value memory that it may come to need.
    """

    length: int
    kv_tokens: int


def partition(items: Sequence[Item], table: CostTable, limits: Limits) -> list[list[int]]:
    """Split requests into batches of the least total cost.

    Takes O(n * max_rows) steps. Requests of equal length stay in the order given.

    Returns:
        Batches of indices into ``items``, each index in exactly one of them; a batch's indices are increasing.
    """
    order = sorted(range(len(items)), key=lambda index: items[index].length)
    kv_before = [0, *accumulate(items[index].kv_tokens for index in order)]
    best, start = [0.0], [0]
    for end in range(1, len(order) + 1):
        length = items[order[end - 1]].length
        least, first = float("inf"), end - 1
        for begin in range(end - 1, max(end - limits.max_rows, 0) - 1, -1):
            num_rows = end - begin
            if num_rows > 1 and kv_before[end] - kv_before[begin] > limits.max_tokens:
                break
            total = best[begin] + table.cost(length, num_rows)
            if total < least:
                least, first = total, begin
        best.append(least)
        start.append(first)
    batches: list[list[int]] = []
    end = len(order)
    while end > 0:
        batches.append(sorted(order[start[end] : end]))
        end = start[end]
    return batches
