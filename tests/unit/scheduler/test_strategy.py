"""What the settings ``batching`` and ``objective`` make of a window, and in which order it runs."""

import math
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.scheduler.tables import PADDED, UNBOUNDED, fits, linear, monotone_tables, packed_tables, total

from headrace.config import Batching, Objective
from headrace.workers.costs.table import CostTable
from headrace.workers.scheduler.partition import Item, Limits
from headrace.workers.scheduler.plan import Batch, Plan
from headrace.workers.scheduler.strategy import Strategy

ALL = [(batching, objective) for batching in get_args(Batching) for objective in get_args(Objective)]
items_of = st.lists(
    st.builds(
        Item,
        length=st.integers(1, 60),
        kv_tokens=st.integers(1, 100),
        slack_ms=st.integers(0, 2_000) | st.just(math.inf),
        score=st.integers(0, 1_000),
    ),
    max_size=30,
)


def members(plan: Plan) -> list[tuple[int, ...]]:
    return [batch.members for batch in plan.batches]


def of_lengths(*lengths: int, **given: float) -> list[Item]:
    return [Item(length, length, **given) for length in lengths]


@pytest.mark.parametrize(("batching", "objective"), ALL)
@given(items=items_of, limits=st.builds(Limits, st.integers(1, 8), st.integers(50, 400), st.integers(60, 300)))
@settings(max_examples=20)
def test_every_request_is_in_exactly_one_batch(
    batching: Batching, objective: Objective, items: list[Item], limits: Limits
) -> None:
    plan = Strategy(batching, objective, 100).plan(items, PADDED, limits)
    assert sorted(i for batch in plan.batches for i in batch.members) == list(range(len(items)))
    if not plan.packed:
        assert all(fits(batch.members, items, limits) for batch in plan.batches)
        assert plan.total_ms == pytest.approx(total(members(plan), items, PADDED))


def test_baselines_fill_batches_in_their_order() -> None:
    items, limits = of_lengths(9, 1, 8, 2, 7), replace(UNBOUNDED, max_rows=2)
    for batching, wanted in (
        ("none", [(0,), (1,), (2,), (3,), (4,)]),
        ("naive", [(0, 1), (2, 3), (4,)]),
        ("sorted", [(0,), (1, 3), (2, 4)]),
    ):
        assert members(Strategy(batching, "total").plan(items, PADDED, limits)) == wanted  # type: ignore[arg-type]
    # A batch may hold 20 padded tokens: 9 + 1 do, three more rows of 8 would not.
    assert members(Strategy("naive", "total").plan(items, PADDED, replace(UNBOUNDED, max_tokens=20))) == [
        (0, 1), (2, 3), (4,)
    ]  # fmt: skip


def test_total_cost_runs_the_most_urgent_request_s_batch_first() -> None:
    plan = Strategy("dp", "total").plan(of_lengths(400, 4, 4), PADDED, UNBOUNDED)
    assert members(plan) == [(0,), (1, 2)]


def test_mean_completion_runs_short_batches_first_among_equally_urgent_ones() -> None:
    items = of_lengths(400, 4, 4)
    assert members(Strategy("dp", "mean", 100).plan(items, PADDED, UNBOUNDED)) == [(1, 2), (0,)]
    # Nobody is overtaken by those that came 100 tokens of virtual time later.
    late = [items[0], replace(items[1], score=100.0), replace(items[2], score=100.0)]
    assert members(Strategy("dp", "mean", 100).plan(late, PADDED, UNBOUNDED)) == [(0,), (1, 2)]


@settings(max_examples=50)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), monotone_tables())
def test_the_mean_objective_is_never_behind_the_total_one_in_the_order_of_length(
    lengths: list[int], table: CostTable
) -> None:
    items = of_lengths(*lengths)
    mean = Strategy("dp", "mean").plan(items, table, UNBOUNDED)
    least_total = Strategy("dp", "total").plan(sorted(items, key=lambda item: item.length), table, UNBOUNDED)
    assert mean.mean_completion_ms <= least_total.mean_completion_ms + 1e-9


def test_deadlines_that_the_cheapest_plan_meets_leave_it_as_it_is() -> None:
    items = [Item(50, 1), Item(40, 1, slack_ms=1_000), Item(4, 1, slack_ms=500)]
    plan = Strategy("dp", "misses").plan(items, PADDED, UNBOUNDED)
    assert plan.num_missed(items) == 0
    assert plan.total_ms == Strategy("dp", "total").plan(items, PADDED, UNBOUNDED).total_ms


def test_a_tight_deadline_is_worth_a_dearer_batch() -> None:
    # Together they cost 110 and end too late for the short ones; alone these two cost 20 and 110.
    costs = linear(fixed_ms=100.0, token_ms=1.0)
    items = [Item(30, 1), Item(20, 1, slack_ms=125), Item(30, 1)]
    cheapest = Strategy("dp", "total").plan(items, costs, UNBOUNDED)
    assert (members(cheapest), cheapest.num_missed(items)) == ([(0, 1, 2)], 1)
    rescued = Strategy("dp", "misses").plan(items, costs, UNBOUNDED)
    assert (members(rescued), rescued.num_missed(items)) == ([(1,), (0, 2)], 0)


def test_of_two_that_cannot_both_be_served_in_time_one_is() -> None:
    items = [Item(50, 1, slack_ms=55), Item(10, 1, slack_ms=60)]
    plan = Strategy("dp", "misses").plan(items, PADDED, UNBOUNDED)
    assert plan.num_missed(items) == 1


@settings(max_examples=60)
@given(
    st.lists(
        st.builds(Item, st.integers(1, 60), st.just(1), st.integers(0, 300) | st.just(math.inf)),
        min_size=1,
        max_size=9,
    ),
    monotone_tables(),
)
def test_no_more_deadlines_are_missed_than_by_the_cheapest_batches_in_the_order_of_deadlines(
    items: list[Item], table: CostTable
) -> None:
    def first_deadline(batch: Batch) -> float:
        return min(items[i].slack_ms for i in batch.members)

    cheapest = Strategy("dp", "total").plan(items, table, UNBOUNDED)
    by_deadline = Plan(tuple(sorted(cheapest.batches, key=first_deadline)))
    found = Strategy("dp", "misses").plan(items, table, UNBOUNDED)
    assert found.num_missed(items) <= by_deadline.num_missed(items)
    if by_deadline.num_missed(items) == 0:
        assert found.total_ms == pytest.approx(cheapest.total_ms)


def test_packing_is_chosen_where_the_measured_table_says_it_is_cheaper() -> None:
    items = of_lengths(100, 1, 1, 1)
    cheap, dear = linear(packed_token_ms=1.0), linear(packed_token_ms=9.0)
    packed = Strategy("auto", "total").plan(items, cheap, UNBOUNDED)
    padded = Strategy("auto", "total").plan(items, dear, UNBOUNDED)
    assert (members(packed), packed.packed) == ([(0, 1, 2, 3)], True)
    assert (packed.total_ms, packed.alternative_ms) == pytest.approx((113, 123))
    assert (members(padded), padded.packed) == ([(0,), (1, 2, 3)], False)
    assert (padded.total_ms, padded.alternative_ms) == pytest.approx((123, 937))
    assert not Strategy("auto", "total").plan(items, PADDED, UNBOUNDED).packed, "nobody has measured it"
    assert Strategy("packed", "total").plan(items, dear, UNBOUNDED).packed
    assert not Strategy("dp", "total").plan(items, cheap, UNBOUNDED).packed


def test_padding_is_not_chosen_for_less_than_measured_costs_err_by() -> None:
    items = of_lengths(100, 1, 1, 1)
    by_8_percent, by_15_percent = (linear(packed_token_ms=token_ms) for token_ms in (1.2, 1.3))
    assert Strategy("dp", "total").plan(items, by_8_percent, UNBOUNDED).total_ms == pytest.approx(123)
    for objective in ("total", "misses"):
        assert Strategy("auto", objective).plan(items, by_8_percent, UNBOUNDED).packed
        assert not Strategy("auto", objective).plan(items, by_15_percent, UNBOUNDED).packed


@given(items_of, packed_tables(), st.sampled_from(("total", "mean")))
def test_the_default_is_never_dearer_than_packing_nor_by_more_than_costs_err_than_padding(
    items: list[Item], table: CostTable, objective: Objective
) -> None:
    plans = [Strategy(way, objective).plan(items, table, UNBOUNDED) for way in ("auto", "packed", "dp")]
    auto, packed, padded = (plan.total_ms if objective == "total" else plan.mean_completion_ms for plan in plans)
    assert auto <= min(packed, 1.1 * padded) + 1e-6


@pytest.mark.parametrize("batching", ["packed", "dp"])
@given(items=items_of, table=packed_tables(), less_ms=st.integers(0, 40), more_ms=st.integers(1, 40))
def test_the_more_a_batch_costs_beside_computing_the_fewer_there_are(
    batching: Batching, items: list[Item], table: CostTable, less_ms: int, more_ms: int
) -> None:
    few, many = (
        Strategy(batching, "total").plan(items, table.raised(batch_ms), UNBOUNDED).batches
        for batch_ms in (less_ms + more_ms, less_ms)
    )
    assert len(few) <= len(many)


def test_a_new_table_is_not_answered_from_the_old_one_s_cells() -> None:
    strategy, items = Strategy("dp", "total"), of_lengths(100, 1)
    assert members(strategy.plan(items, linear(token_ms=1.0), UNBOUNDED)) == [(0,), (1,)]
    assert members(strategy.plan(items, linear(token_ms=0.001), UNBOUNDED)) == [(0, 1)]
    assert members(strategy.plan(items, linear(token_ms=1.0), replace(UNBOUNDED, max_rows=1))) == [(0,), (1,)]
