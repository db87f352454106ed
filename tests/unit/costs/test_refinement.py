"""A table follows what is observed, and is not led astray by a machine that was paused."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.workers.costs.refinement import MAX_RATIO, RATE, Refiner, change
from headrace.workers.costs.table import CostTable

TRUE = CostTable.linear(10.0, 1.0, 512, 16)
SIDES = (4, 16, 64, 256), (1, 2, 4, 8, 16), (4, 16, 64, 256, 1024)


def scaled(factor: float) -> CostTable:
    """The true costs on finer points, all wrong by one factor."""
    lengths, rows, packed = SIDES
    grid = tuple(tuple(factor * TRUE.cost(length, n) for n in rows) for length in lengths)
    return CostTable(lengths, rows, grid, packed, tuple(factor * TRUE.packed_cost(tokens) for tokens in packed))


@pytest.mark.parametrize("factor", [0.05, 20.0])
def test_a_planted_wrong_table_is_corrected_also_where_nothing_is_observed(factor: float) -> None:
    refiner, pick = Refiner(scaled(factor)), random.Random(1)
    for _ in range(600):
        tokens, length, rows = pick.randint(4, 64), pick.randint(4, 40), pick.randint(1, 4)
        refiner.observe_packed(tokens, TRUE.packed_cost(tokens))
        refiner.observe_padded(length, rows, TRUE.cost(length, rows))
    for tokens in (8, 30, 64):
        assert refiner.table.packed_cost(tokens) == pytest.approx(TRUE.packed_cost(tokens), rel=0.1)
    assert refiner.table.cost(20, 2) == pytest.approx(TRUE.cost(20, 2), rel=0.15)
    # Nobody computed so much: what was learnt of the machine's speed holds there, too.
    assert 1 / 2 < refiner.table.packed_cost(1000) / TRUE.packed_cost(1000) < 2
    assert 1 / 2 < refiner.table.cost(256, 16) / TRUE.cost(256, 16) < 2


def test_a_table_that_is_right_stays_as_it_is() -> None:
    refiner = Refiner(scaled(1.0))
    for tokens in (4, 100, 1000):
        refiner.observe_packed(tokens, TRUE.packed_cost(tokens))
    refiner.observe_padded(33, 3, TRUE.cost(33, 3))
    assert change(scaled(1.0), refiner.table) < 1e-9


def test_one_step_of_a_paused_machine_moves_a_cost_by_a_few_percent() -> None:
    refiner = Refiner(scaled(1.0))
    refiner.observe_packed(64, 600_000.0)
    refiner.observe_padded(64, 1, 600_000.0)
    assert 0 < change(scaled(1.0), refiner.table) <= MAX_RATIO**RATE - 1 + 1e-9
    assert MAX_RATIO**RATE < 1.08


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 64), st.floats(0, 1e9)), max_size=40))
def test_whatever_is_observed_a_table_stays_one(observed: list[tuple[int, int, float]]) -> None:
    refiner = Refiner(scaled(1.0))
    for tokens, rows, cost_ms in observed:
        refiner.observe_packed(tokens, cost_ms)
        refiner.observe_padded(tokens, rows, cost_ms)
    line = [refiner.table.packed_cost(tokens) for tokens in range(1, 3000, 37)]
    assert all(a <= b for a, b in pairwise(line))
    assert CostTable.decode(refiner.table.encode()) == refiner.table


def test_nothing_is_learnt_of_packing_where_nothing_packs() -> None:
    padded = CostTable.linear(10.0, 1.0, 512, 16, packs=False)
    refiner = Refiner(padded)
    refiner.observe_packed(100, 5000.0)
    assert refiner.table == padded
