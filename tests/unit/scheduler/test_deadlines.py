"""Whom the queue gives up when not all deadlines can be met: as few as possible, found by trying everything."""

import math
from dataclasses import replace
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.scheduler.tables import PADDED, UNBOUNDED, fits, monotone_tables, price, runs

from headrace.workers.costs.table import CostTable
from headrace.workers.scheduler.cost_grid import CostGrid
from headrace.workers.scheduler.deadlines import MAX_WEIGHED, rescue
from headrace.workers.scheduler.partition import Item, Limits

items_of = st.lists(
    st.builds(Item, st.integers(1, 60), st.integers(1, 20), st.integers(0, 300) | st.just(math.inf)), max_size=7
)


def ends_in_time(split: list[list[int]], items: list[Item], table: CostTable) -> float | None:
    """When the last batch ends, if every request's ends in time."""
    now_ms = 0.0
    for batch in split:
        now_ms += price(batch, items, table)
        if any(items[i].slack_ms < now_ms for i in batch):
            return None
    return now_ms


@settings(max_examples=80)
@given(items_of, monotone_tables(), st.builds(Limits, st.integers(1, 9), st.integers(20, 100), st.integers(60, 200)))
def test_as_few_as_possible_are_given_up_and_the_rest_ends_as_early_as_possible(
    items: list[Item], table: CostTable, limits: Limits
) -> None:
    due = sorted((i for i, item in enumerate(items) if item.slack_ms < math.inf), key=lambda i: items[i].slack_ms)
    batches, given_up = rescue(items, CostGrid(table, limits.max_rows), limits)
    assert sorted([*given_up, *(i for batch in batches for i in batch)]) == sorted(due)
    assert all(fits(batch, items, limits) for batch in batches)
    end_ms = ends_in_time(batches, items, table)
    assert end_ms is not None
    # Runs of the order of deadlines, neighbours in it, for any choice of whom to keep.
    place = {index: rank for rank, index in enumerate(due)}
    ends = {
        (num_kept, end)
        for num_kept in range(len(due) + 1)
        for kept in combinations(due, num_kept)
        for split in runs(kept)
        if all(place[batch[-1]] - place[batch[0]] == len(batch) - 1 for batch in split)
        and all(fits(batch, items, limits) for batch in split)
        and (end := ends_in_time(split, items, table)) is not None
    }
    most_kept = max(num_kept for num_kept, _ in ends)
    assert len(due) - len(given_up) == most_kept
    assert abs(end_ms - min(end for num_kept, end in ends if num_kept == most_kept)) < 1e-6


def test_of_very_many_those_are_weighed_whose_deadlines_come_first() -> None:
    items = [Item(1, 1, slack_ms=10.0**6 + i) for i in range(MAX_WEIGHED + 5)]
    urgent = [replace(item, slack_ms=20_000.0) for item in items[-5:]]
    batches, given_up = rescue([*items, *urgent], CostGrid(PADDED, 16), replace(UNBOUNDED, max_rows=16))
    served = [i for batch in batches for i in batch]
    assert (len(served), given_up) == (MAX_WEIGHED, [])
    assert set(range(len(items), len(items) + 5)) <= set(served[:16])
