"""The partition's promises: every request once, limits kept, and no cheaper way to do it."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.scheduler.tables import (
    PADDED,
    UNBOUNDED,
    fits,
    mean_completion,
    monotone_tables,
    packed_tables,
    runs,
    set_partitions,
    total,
)

from headrace.workers.costs.table import CostTable
from headrace.workers.scheduler.cost_grid import CostGrid
from headrace.workers.scheduler.partition import Item, Limits, cut_packed, cut_padded, in_length_order

items_of = st.lists(st.builds(Item, length=st.integers(1, 60), kv_tokens=st.integers(1, 100)), max_size=40)


def cut(items: Sequence[Item], table: CostTable, limits: Limits = UNBOUNDED, *, mean: bool = False) -> list[list[int]]:
    return cut_padded(items, CostGrid(table, limits.max_rows), limits, mean=mean)


@given(items_of, st.builds(Limits, st.integers(1, 8), st.integers(50, 400), st.integers(60, 300)), st.booleans())
def test_every_request_is_in_exactly_one_batch_and_limits_are_kept(
    items: list[Item], limits: Limits, mean: bool
) -> None:
    padded = cut(items, PADDED, limits, mean=mean)
    packed = cut_packed(items, CostGrid(PADDED, 8), limits, mean=mean)
    for batches in (padded, packed):
        assert sorted(i for batch in batches for i in batch) == list(range(len(items)))
    assert all(fits(batch, items, limits) for batch in padded)
    for batch in packed:
        sizes = (len(batch), sum(items[i].length for i in batch), sum(items[i].kv_tokens for i in batch))
        assert len(batch) == 1 or all(
            a <= b for a, b in zip(sizes, (limits.max_rows, limits.max_tokens, limits.max_kv_tokens), strict=True)
        )


@settings(max_examples=60)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), monotone_tables())
def test_no_set_partition_is_cheaper_on_a_table_that_does_not_decrease_with_length(
    lengths: list[int], table: CostTable
) -> None:
    items = [Item(length, 1) for length in lengths]
    least = min(total(split, items, table) for split in set_partitions(range(len(items))))
    assert total(cut(items, table), items, table) == pytest.approx(least)


@settings(max_examples=4)
@given(st.lists(st.integers(1, 60), min_size=9, max_size=9), monotone_tables())
def test_nor_is_any_of_nine_requests(lengths: list[int], table: CostTable) -> None:
    items = [Item(length, 1) for length in lengths]
    least = min(total(split, items, table) for split in set_partitions(range(9)))
    assert total(cut(items, table), items, table) == pytest.approx(least)


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=7),
    monotone_tables(),
    st.integers(1, 4),
    st.integers(60, 200),
)
def test_no_set_partition_within_rows_and_padded_tokens_is_cheaper(
    lengths: list[int], table: CostTable, max_rows: int, max_tokens: int
) -> None:
    items, limits = [Item(length, 1) for length in lengths], Limits(max_rows, 10**9, max_tokens)
    splits = (s for s in set_partitions(range(len(items))) if all(fits(batch, items, limits) for batch in s))
    least = min(total(split, items, table) for split in splits)
    assert total(cut(items, table, limits), items, table) == pytest.approx(least)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), monotone_tables())
def test_no_cut_of_the_length_order_has_a_lower_mean_completion_time(lengths: list[int], table: CostTable) -> None:
    items = [Item(length, 1) for length in lengths]
    least = min(mean_completion(split, items, table) for split in runs(in_length_order(items)))
    assert mean_completion(cut(items, table, mean=True), items, table) == pytest.approx(least)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), packed_tables(), st.integers(1, 4), st.integers(10, 100))
def test_no_cut_of_the_order_packs_cheaper(
    lengths: list[int], table: CostTable, max_rows: int, max_tokens: int
) -> None:
    def weight(batch: Sequence[int]) -> int:
        return sum(lengths[i] for i in batch)

    def cost(split: Sequence[Sequence[int]]) -> float:
        return sum(table.packed_cost(weight(batch)) for batch in split)

    allowed = (
        split
        for split in runs(range(len(lengths)))
        if all(len(batch) == 1 or (len(batch) <= max_rows and weight(batch) <= max_tokens) for batch in split)
    )
    items, limits = [Item(length, 1) for length in lengths], Limits(max_rows, 10**9, max_tokens)
    found = cut_packed(items, CostGrid(table, max_rows), limits)
    assert cost(found) == pytest.approx(min(cost(split) for split in allowed))
    assert [i for batch in found for i in batch] == list(range(len(items))), "nobody overtakes anybody"


def test_requests_of_one_length_share_a_batch_and_a_long_one_travels_alone() -> None:
    items = [Item(length, 1) for length in (4, 200, 4, 4)]
    assert sorted(cut(items, PADDED)) == [[0, 2, 3], [1]]


def test_a_table_where_batches_cost_nothing_extra_puts_all_into_one() -> None:
    free = CostTable((1,), (1,), ((5.0,),))
    assert cut([Item(length, 1) for length in (1, 50, 9)], free) == [[0, 1, 2]]


def test_a_request_larger_than_the_memory_limit_still_gets_a_batch_of_its_own() -> None:
    items = [Item(5, 10_000), Item(5, 10)]
    assert sorted(cut(items, PADDED, Limits(8, 100, 10_000))) == [[0], [1]]
    assert sorted(cut([Item(500, 1), Item(500, 1)], PADDED, Limits(8, 100, 100))) == [[0], [1]]


def test_nothing_waiting_makes_no_batch() -> None:
    assert cut([], PADDED) == []
    assert cut_packed([], CostGrid(PADDED, 1), UNBOUNDED) == []


@given(monotone_tables(), st.integers(1, 90), st.integers(1, 12))
def test_a_grid_holds_the_table_s_costs(table: CostTable, length: int, max_rows: int) -> None:
    row = CostGrid(table, max_rows).padded(length)
    assert row.tolist() == pytest.approx([table.cost(length, num_rows) for num_rows in range(1, max_rows + 1)])


@given(packed_tables(), st.integers(1, 300))
def test_a_grid_holds_the_table_s_packed_costs(table: CostTable, max_tokens: int) -> None:
    grid = CostGrid(table, 4)
    grid.packed(1)
    wanted = [table.packed_cost(count) for count in range(1, max_tokens + 1)]
    assert grid.packed(max_tokens).tolist() == pytest.approx([0.0, *wanted])


def test_where_nothing_packs_a_packed_batch_is_priced_as_one_row_as_long() -> None:
    assert CostGrid(PADDED, 4).packed(3).tolist() == pytest.approx([0.0, 11.0, 12.0, 13.0])
