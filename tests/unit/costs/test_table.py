"""The table's promises: what is measured is met, nothing longer is cheaper, and damage is noticed."""

import math
from itertools import pairwise

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import DecodeError
from headrace.workers.costs.building import build_table, isotonic
from headrace.workers.costs.table import CostTable

costs_ms = st.floats(0.01, 1e6)
cells_of = st.dictionaries(st.tuples(st.integers(1, 600), st.integers(1, 32)), costs_ms, max_size=12)
packed_of = st.dictionaries(st.integers(1, 4096), costs_ms, min_size=1, max_size=12)
lengths_of = st.sets(st.integers(1, 600), min_size=1, max_size=6)
rows_of = st.sets(st.integers(1, 32), min_size=1, max_size=6)
SMALL = CostTable((4, 8), (1, 2), ((10.0, 14.0), (12.0, 20.0)), (4, 16), (9.0, 21.0))


@given(cells_of, packed_of, lengths_of, rows_of)
def test_a_table_of_noisy_points_never_prices_more_as_less(
    cells: dict[tuple[int, int], float], packed: dict[int, float], lengths: set[int], rows: set[int]
) -> None:
    table = build_table(cells, packed, lengths, rows)
    for num_rows in range(min(rows), max(rows) + 1):
        line = [table.cost(length, num_rows) for length in range(1, 700, 23)]
        assert all(a <= b * (1 + 1e-9) + 1e-6 for a, b in pairwise(line))
    for length in lengths:
        row = [table.cost(length, num_rows) for num_rows in range(1, 40)]
        assert all(a <= b * (1 + 1e-9) + 1e-6 for a, b in pairwise(row))
    line = [table.packed_cost(tokens) for tokens in range(1, 5000, 61)]
    assert all(0 <= a <= b * (1 + 1e-9) + 1e-6 for a, b in pairwise(line))


def test_points_that_increase_are_met_exactly_and_the_cells_between_them_are_linear() -> None:
    cells = {(4, 1): 10.0, (4, 2): 14.0, (8, 1): 12.0, (8, 2): 20.0}
    table = build_table(cells, {4: 9.0, 16: 21.0}, (4, 8), (1, 2))
    assert table == SMALL
    assert table.cost(6, 1) == pytest.approx(11.0)
    assert table.packed_cost(10) == pytest.approx(15.0)
    assert table.packed_cost(28) == pytest.approx(33.0)


def test_a_cell_that_nobody_measured_costs_what_as_many_tokens_cost_back_to_back() -> None:
    table = build_table({(4, 1): 10.0}, {4: 10.0, 104: 110.0}, (4, 40), (1, 2))
    assert table.cost(40, 2) == pytest.approx(86.0)


def test_what_lies_beyond_the_last_measurement_is_never_free() -> None:
    # Noise made the last two equal: a table that goes on flat would put all that waits into one batch.
    table = build_table({}, {10: 10.0, 110: 60.0, 210: 110.0, 220: 109.0}, (1, 1000), (1, 4))
    assert table.packed_cost(4000) == pytest.approx(109.5 + (109.5 - 10.0) / 210 * 3780, rel=0.01)


def test_where_only_noise_was_measured_more_tokens_still_cost_more() -> None:
    # A machine so busy that 8 tokens took longer than 32: the table said that any batch costs as much as any other.
    table = build_table({}, {8: 3_500.0, 32: 2_900.0}, (4, 64, 1024), (1, 4))
    assert table.packed_cost(32) == pytest.approx(3_200.0)
    assert table.packed_cost(1024) > 10 * table.packed_cost(32)
    assert table.cost(1024, 4) > 3 * table.cost(1024, 1) > 9 * table.cost(64, 1)


@given(st.lists(costs_ms, min_size=1, max_size=7))
def test_smoothing_is_the_nearest_order_there_is(values: list[float]) -> None:
    smooth = isotonic(values)
    assert all(a <= b for a, b in pairwise(smooth))
    # The min-max formula of isotonic regression, by which every value is known on its own.
    for k in range(len(values)):
        best = max(min(_mean(values[i : j + 1]) for j in range(k, len(values))) for i in range(k + 1))
        assert smooth[k] == pytest.approx(best)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def test_a_runtime_that_cannot_pack_prices_packing_as_infinite() -> None:
    table = CostTable.linear(10.0, 1.0, 512, 16, packs=False)
    assert (table.packs, table.packed_cost(5)) == (False, math.inf)
    assert CostTable.linear(10.0, 1.0, 512, 16).packed_cost(700) == pytest.approx(710.0)


def test_costs_below_the_first_point_are_never_negative() -> None:
    steep = CostTable((10, 20), (1,), ((5.0,), (105.0,)), (10, 20), (5.0, 105.0))
    assert (steep.cost(1, 1), steep.packed_cost(1)) == (0.0, 0.0)


@given(st.integers(1, 40), st.integers(1, 8), st.floats(0, 1e4))
def test_a_raised_table_prices_every_batch_by_so_much_more(length: int, rows: int, batch_ms: float) -> None:
    raised = SMALL.raised(batch_ms)
    assert raised.packed_cost(length) == pytest.approx(SMALL.packed_cost(length) + batch_ms)
    if SMALL.cost(length, rows) > 0:
        assert raised.cost(length, rows) == pytest.approx(SMALL.cost(length, rows) + batch_ms)
    assert not CostTable.linear(1.0, 1.0, 4, 4, packs=False).raised(batch_ms).packs


def test_a_table_survives_its_encoding() -> None:
    assert CostTable.decode(SMALL.encode()) == SMALL


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((2, (4,), (1,), ((1.0,),), (), ()), "version 2"),
        ((1, (4, 8), (1,), ((2.0,), (1.0,)), (), ()), "longer"),
        ((1, (4,), (1,), ((float("nan"),),), (), ()), "milliseconds"),
        ((1, (4,), (1,), ((-1.0,),), (), ()), "milliseconds"),
        ((1, (4,), (1,), ((1.0,),), (1, 2), (2.0, 1.0)), "longer"),
        ((1, (4,), (1,), ((1.0,),), (1,), ()), "packed"),
        ((1, (0,), (1,), ((1.0,),), (), ()), "from 1 on"),
        ((1, ("4",), (1,), ((1.0,),), (), ()), "whole numbers"),
        ((1, (4,), (1,), (("dear",),), (), ()), "not a cost table"),
        ((1, (1 << 50,), (1,), ((1.0,),), (), ()), "whole numbers up to"),
        ((1, (4,), (1,), ((1e300,),), (), ()), "milliseconds up to"),
        ((1, (4,), (1,), (("x",),), (), ()), "milliseconds up to"),
        ((1, (4,), (1,)), "not a cost table"),
        ((1, 4, 1, 1.0, (), ()), "not a cost table"),
        ((1, b"\x01\x40", (1,), ((1.0,), (2.0,)), (), ()), "not a sequence"),
        ((1, (4,), b"\x01", ((1.0,),), (), ()), "not a sequence"),
        ((1, (4,), (1,), ((1.0,),), b"\x01\x40", (1.0, 2.0)), "not a sequence"),
        ((1, {"4": 0}, (1,), ((1.0,),), (), ()), "not a sequence"),
        ((1, tuple(range(1, 2000)), (1,), ((1.0,),) * 1999, (), ()), "at most 1024"),
        ((True, (4,), (1,), ((1.0,),), (), ()), "version True"),
    ],
)
def test_what_is_no_table_is_refused_with_the_reason(fields: tuple[object, ...], message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        CostTable.decode(msgpack.packb(fields))
