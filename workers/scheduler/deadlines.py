"""Which requests are to meet their deadlines when not all of them can. Pure.

In the order of deadlines, with a batch a run of neighbours among those that are kept, ``least[i][k]`` is the least
time in which the first ``i`` requests are served in time but for ``k`` of them, which are given up (and cost nothing:
the queue ends a request whose deadline is over before anybody computes it). Without batches this is Moore's problem,
whose optimum is of this form; batches that mix deadlines in another order may be better.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from headrace.workers.scheduler.cost_grid import CostGrid, Floats
from headrace.workers.scheduler.partition import Item, Limits

#: The recurrence takes cubic time; of more requests only these, whose deadlines come first, are weighed.
MAX_WEIGHED = 256


def rescue(items: Sequence[Item], grid: CostGrid, limits: Limits) -> tuple[list[list[int]], list[int]]:
    """Choose whom to serve in time, as many as possible, and of equal choices the one that ends first.

    Args:
        items: the window; only requests with a deadline are looked at, at most ``MAX_WEIGHED``.
        grid: over the table of a runtime that pads.
        limits: of a batch.

    Returns:
        Batches in the order in which they must run, all of them in time, as lists of increasing indices into
        ``items``; and the indices of those that were looked at and given up.
    """
    due = [index for index, item in enumerate(items) if item.slack_ms < float("inf")]
    order = sorted(due, key=lambda index: items[index].slack_ms)[:MAX_WEIGHED]
    num_items = len(order)
    least = np.full((num_items + 1, num_items + 1), np.inf)
    least[0, 0] = 0.0
    start = np.full((num_items + 1, num_items + 1), -1)  # where the last batch begins; -1: the last one is given up
    slack_ms = np.array([items[index].slack_ms for index in order])
    for end in range(1, num_items + 1):
        least[end, 1:] = least[end - 1, :-1]
        costs = _costs_of_runs([items[index] for index in order[max(0, end - limits.max_rows) : end]], grid, limits)
        begin = end - len(costs)
        times = least[begin:end] + costs[:, None]
        # The first of a run has the earliest deadline.
        times[times > slack_ms[begin:end, None]] = np.inf
        first = times.argmin(axis=0)
        found = times[first, np.arange(num_items + 1)]
        better = found < least[end]
        least[end] = np.where(better, found, least[end])
        start[end] = np.where(better, begin + first, -1)
    num_given_up = int(np.isfinite(least[num_items]).argmax())
    batches: list[list[int]] = []
    given_up: list[int] = []
    end = num_items
    while end > 0:
        begin = int(start[end, num_given_up])
        if begin < 0:
            end -= 1
            num_given_up -= 1
            given_up.append(order[end])
        else:
            batches.append(sorted(order[begin:end]))
            end = begin
    return batches[::-1], given_up[::-1]


def _costs_of_runs(items: Sequence[Item], grid: CostGrid, limits: Limits) -> Floats:
    """Costs of the runs that end with the last item, longest run first, as far as they keep to the limits."""
    lengths = list(accumulate((item.length for item in reversed(items)), max))
    kv_tokens = accumulate(item.kv_tokens for item in reversed(items))
    costs = []
    for num_rows, (length, kv) in enumerate(zip(lengths, kv_tokens, strict=True), 1):
        if num_rows > 1 and (length * num_rows > limits.max_tokens or kv > limits.max_kv_tokens):
            break
        costs.append(grid.padded(length)[num_rows - 1])
    return np.array(costs[::-1])
