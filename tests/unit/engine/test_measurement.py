"""Measuring costs with the engine itself: plausible, in bounds, and without a trace in the engine that serves."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import pytest

from headrace.errors import MeasurementError
from headrace.job import SamplingParams
from headrace.workers.channel import Add
from headrace.workers.costs.refinement import change
from headrace.workers.costs.table import CostTable
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.measurement import Extent, Measurement
from headrace.workers.engine.text_scratch import TextScratch
from headrace.workers.scheduler.partition import Item, Limits
from headrace.workers.scheduler.strategy import Strategy

Params = Callable[..., SamplingParams]
EXTENT = Extent(max_length=64, max_rows=4, max_tokens=128)


def scratch(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(kv_tokens=256, step_tokens=32)


class WorkClock:
    """Time passes by what a step computes: 5 ms a step and 1 ms a token."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reads = count()
        self.now_s = 0.0

    def __call__(self) -> float:
        if next(self._reads) % 2:
            self.now_s += 0.005 + 0.001 * self._engine.work.num_tokens
        return self.now_s


def measured(engine: Engine, budget_ms: float) -> tuple[Measurement, CostTable]:
    measurement = Measurement(TextScratch(engine, 97), EXTENT, budget_ms, WorkClock(engine))
    while measurement.advance():
        pass
    return measurement, measurement.table()


def test_a_measured_table_holds_what_steps_cost(make_engine: Callable[..., Engine]) -> None:
    measurement, table = measured(scratch(make_engine), 1e9)
    assert measurement.num_measured == len(EXTENT.sizes)
    # 32 tokens fit into a step; more take several, each with its own fixed cost.
    assert table.cost(16, 2) == pytest.approx(5 + 32)
    assert table.cost(64, 1) == pytest.approx(2 * 5 + 64)
    assert table.packed_cost(128) == pytest.approx(4 * 5 + 128)
    assert table.packed_cost(8) == pytest.approx(5 + 8)


class LongRowsCostMore:
    """A scratch without an engine: 3 ms a step, and each row its tokens and what attention takes, on its own clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._lengths: Sequence[int] = ()

    @property
    def has_rows(self) -> bool:
        return bool(self._lengths)

    def put(self, lengths: Sequence[int], *, packed: bool) -> None:
        self._lengths = lengths

    def step(self) -> str:
        self.now_s += (3 + sum(0.1 * length + 0.0002 * length**2 for length in self._lengths)) / 1000
        self._lengths = ()
        return ""

    def clear(self) -> None:
        self._lengths = ()


def test_packed_tokens_are_measured_on_more_prompts_not_on_longer_ones_so_that_no_window_is_cut_in_vain() -> None:
    def table(max_packed_length: int | None) -> CostTable:
        scratch = LongRowsCostMore()
        extent = Extent(512, 128, 65_536, max_packed_length)
        measurement = Measurement(scratch, extent, 1e9, lambda: scratch.now_s)
        while measurement.advance():
            pass
        return measurement.table()

    items = [Item(50, 51) for _ in range(40)]
    limits = Limits(max_rows=64, max_kv_tokens=1 << 40, max_tokens=1 << 40)
    by_short, by_long = (Strategy("packed", "total").plan(items, table(most), limits) for most in (128, None))
    assert [len(batch.members) for batch in by_short.batches] == [40]
    assert len(by_long.batches) > 1, "long prompts make it seem that small batches are cheaper"


def test_real_steps_give_costs_that_do_not_fall(make_engine: Callable[..., Engine]) -> None:
    measurement = Measurement(TextScratch(scratch(make_engine), 97), EXTENT, 2_000)
    while measurement.advance():
        pass
    table = measurement.table()
    assert measurement.num_measured > 8
    # Not "<": where other programs take the cores, more tokens need not take longer.
    assert 0 < table.packed_cost(8) <= table.packed_cost(128) < table.packed_cost(512)
    assert 0 < table.cost(4, 1) <= table.cost(64, 4)


def test_time_that_is_up_ends_a_measurement_and_the_rest_is_estimated(make_engine: Callable[..., Engine]) -> None:
    measurement, table = measured(scratch(make_engine), 500)
    assert 2 < measurement.num_measured < len(EXTENT.sizes)
    assert measurement.spent_ms < 600
    assert table.cost(64, 4) == pytest.approx(256 + 5 * 8, rel=0.5)


def test_the_least_budget_still_measures_what_a_table_needs(make_engine: Callable[..., Engine]) -> None:
    _, table = measured(scratch(make_engine), 1)
    assert table.packed_cost(512) > 2 * table.packed_cost(32) > 0


def test_a_measurement_that_is_interrupted_at_any_step_measures_the_same(make_engine: Callable[..., Engine]) -> None:
    _, undisturbed = measured(scratch(make_engine), 1e9)
    engine = scratch(make_engine)
    measurement = Measurement(TextScratch(engine, 97), EXTENT, 1e9, WorkClock(engine))
    interrupts = count()
    while measurement.advance():
        if next(interrupts) % 7 == 3:
            measurement.pause()
    assert change(measurement.table(), undisturbed) < 1e-9
    assert engine.num_used_pages == 0


def test_measuring_changes_nothing_of_the_engine_that_serves(
    make_engine: Callable[..., Engine], params: Params
) -> None:
    def tokens_of(disturbed: bool) -> tuple[list[int], int]:
        engine = make_engine(kv_tokens=64, max_rows=2)
        measurement = Measurement(TextScratch(scratch(make_engine), 97), EXTENT, 1e9)
        engine.add(Add(1, tuple(range(3, 30)), (), params(max_tokens=12)))
        drawn: list[int] = []
        while engine.has_rows:
            drawn += [token_id for _, token_id, _ in engine.step().tokens]
            if disturbed:
                measurement.advance()
        # The second row finds the beginning that the first one left behind.
        engine.add(Add(2, tuple(range(3, 30)), (), params(max_tokens=1)))
        before = engine.num_prefilled_tokens
        while disturbed and measurement.advance():
            pass
        while engine.has_rows:
            drawn += [token_id for _, token_id, _ in engine.step().tokens]
        assert engine.num_used_pages == 0
        return drawn, engine.num_prefilled_tokens - before

    undisturbed, disturbed = tokens_of(False), tokens_of(True)
    assert disturbed == undisturbed
    assert disturbed[1] < 27


def test_a_step_that_fails_ends_the_measurement_with_its_reason(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = scratch(make_engine)
    measurement = Measurement(TextScratch(engine, 97), Extent(64, 4, 128), 1e9)

    def failing(*_: object) -> Iterator[None]:
        raise ArithmeticError("planted")

    monkeypatch.setattr(engine._runner.steps, "_compute", failing)
    with pytest.raises(MeasurementError, match="planted"):
        measurement.advance()
