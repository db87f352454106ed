"""The partition's promises: every request once, limits kept, and no cheaper way to do it."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import DecodeError
from headrace.workers.costs.table import CostTable
from headrace.workers.scheduler.partition import Item, Limits, partition

UNBOUNDED = Limits(max_rows=100, max_tokens=10**9)
PADDED = CostTable.linear(fixed_ms=10.0, token_ms=1.0, max_length=512, max_batch_rows=16)


def total_cost(batches: Sequence[Sequence[int]], items: Sequence[Item], table: CostTable) -> float:
    return sum(table.cost(max(items[i].length for i in batch), len(batch)) for batch in batches)


def set_partitions(indices: list[int]) -> Iterator[list[list[int]]]:
    if not indices:
        yield []
        return
    first, rest = indices[0], indices[1:]
    for smaller in set_partitions(rest):
        yield [[first], *smaller]
        for i, batch in enumerate(smaller):
            yield [*smaller[:i], [first, *batch], *smaller[i + 1 :]]


@st.composite
def monotone_tables(draw: st.DrawFn) -> CostTable:
    """Tables that do not decrease with length; over batch sizes they may do what they like.

    They cover every batch size that is asked for: beyond its last cell a table goes on as a straight line, and two such
    lines may cross.
    """
    lengths = sorted(draw(st.sets(st.integers(1, 60), min_size=1, max_size=4)))
    sizes = sorted({1, 9} | draw(st.sets(st.integers(2, 8), max_size=3)))
    rows: list[tuple[float, ...]] = []
    for _ in lengths:
        below = rows[-1] if rows else tuple(1.0 for _ in sizes)
        rows.append(tuple(cost + draw(st.integers(0, 50)) for cost in below))
    return CostTable(tuple(lengths), tuple(sizes), tuple(rows))


items_of = st.lists(st.builds(Item, length=st.integers(1, 60), kv_tokens=st.integers(1, 100)), max_size=40)


@given(items_of, st.integers(1, 8), st.integers(50, 400))
def test_every_request_is_in_exactly_one_batch_and_limits_are_kept(
    items: list[Item], max_rows: int, max_tokens: int
) -> None:
    batches = partition(items, PADDED, Limits(max_rows, max_tokens))
    assert sorted(i for batch in batches for i in batch) == list(range(len(items)))
    for batch in batches:
        assert len(batch) <= max_rows
        assert len(batch) == 1 or sum(items[i].kv_tokens for i in batch) <= max_tokens


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), monotone_tables())
def test_no_set_partition_is_cheaper_on_a_table_that_does_not_decrease_with_length(
    lengths: list[int], table: CostTable
) -> None:
    items = [Item(length, 1) for length in lengths]
    found = total_cost(partition(items, table, UNBOUNDED), items, table)
    least = min(total_cost(split, items, table) for split in set_partitions(list(range(len(items)))))
    assert found == pytest.approx(least)


def test_requests_of_one_length_share_a_batch_and_a_long_one_travels_alone() -> None:
    items = [Item(length, 1) for length in (4, 200, 4, 4)]
    assert sorted(partition(items, PADDED, UNBOUNDED)) == [[0, 2, 3], [1]]


def test_a_table_where_batches_cost_nothing_extra_puts_all_into_one() -> None:
    free = CostTable((1,), (1,), ((5.0,),))
    assert partition([Item(length, 1) for length in (1, 50, 9)], free, UNBOUNDED) == [[0, 1, 2]]


def test_a_request_larger_than_the_memory_limit_still_gets_a_batch_of_its_own() -> None:
    items = [Item(5, 10_000), Item(5, 10)]
    assert sorted(partition(items, PADDED, Limits(8, 100))) == [[0], [1]]


def test_nothing_waiting_makes_no_batch() -> None:
    assert partition([], PADDED, UNBOUNDED) == []


@given(monotone_tables(), st.integers(1, 9))
def test_interpolated_costs_meet_the_cells_and_do_not_decrease_with_length(table: CostTable, num_rows: int) -> None:
    for i, length in enumerate(table.lengths):
        for j, size in enumerate(table.batch_sizes):
            assert table.cost(length, size) == pytest.approx(table.cost_ms[i][j])
    # Between two measured batch sizes every cell lies between monotone neighbours.
    if table.batch_sizes[0] <= num_rows <= table.batch_sizes[-1]:
        costs = [table.cost(length, num_rows) for length in range(1, 80)]
        assert all(a <= b + 1e-9 for a, b in pairwise(costs))


def test_a_table_survives_its_encoding_and_damage_is_noticed() -> None:
    assert CostTable.decode(PADDED.encode()) == PADDED
    for damaged in (b"", b"\x93\x01", CostTable.encode(PADDED)[:-3]):
        with pytest.raises(DecodeError):
            CostTable.decode(damaged)
    with pytest.raises(DecodeError, match="increase"):
        CostTable((5, 5), (1,), ((1.0,), (1.0,)))
    with pytest.raises(DecodeError, match="sides"):
        CostTable((5, 6), (1,), ((1.0,),))
