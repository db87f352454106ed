"""When an engine measures, what it keeps, and whom it tells."""

import logging
from collections.abc import Callable
from itertools import accumulate, count
from pathlib import Path

import pytest

from headrace.errors import DeviceLostError, InvalidRequestError
from headrace.workers.costs.cost_file import CostFile, CostKey
from headrace.workers.costs.table import CostTable
from headrace.workers.engine.cost_keeper import CostKeeper
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.measurement import Extent, Measurement, Scratch
from headrace.workers.engine.step_work import StepWork
from headrace.workers.engine.text_scratch import TextScratch

EXTENT = Extent(max_length=16, max_rows=2, max_tokens=32)
KEY = CostKey("cpu", "0123456789abcdef", "float32", 4, 16)
GUESS = EXTENT.linear(30.0, 2.0)


class Clock:
    """Stands still until a test moves it."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A keeper, its clock, its file, and how often it made a scratch engine."""

    def __init__(self, make_engine: Callable[..., Engine], folder: Path, budget_ms: int = 50) -> None:
        self.clock, self.num_engines = Clock(), 0
        self.file = CostFile(folder, KEY)

        def make() -> TextScratch:
            self.num_engines += 1
            return TextScratch(make_engine(kv_tokens=128, step_tokens=16), 97)

        self.keeper = CostKeeper(
            EXTENT, make, worker_class="c", budget_ms=budget_ms, file=self.file, clock_s=self.clock
        )

    def measure(self) -> None:
        while self.keeper.is_measuring:
            self.keeper.use_idle_moment()

    def table(self) -> CostTable:
        return CostTable.decode(self.keeper.table)


def pace_measurements(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Let every step of a measurement take so many times as long as the one before, be it of more tokens or not."""
    ends_s = accumulate(factor ** (reads // 2) * (reads % 2) for reads in count())

    def paced(scratch: Scratch, extent: Extent, budget_ms: float, clock_s: Callable[[], float]) -> Measurement:
        return Measurement(scratch, extent, budget_ms, lambda: next(ends_s))

    monkeypatch.setattr("headrace.workers.engine.cost_keeper.Measurement", paced)


@pytest.fixture(autouse=True)
def _more_tokens_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    # By the machine's clock it might be otherwise.
    pace_measurements(monkeypatch, 1.1)


def prompts(num_tokens: int) -> StepWork:
    return StepWork(num_tokens, num_tokens, ((1, num_tokens),), (num_tokens, 1))


def test_a_first_start_measures_and_the_next_one_reads_the_file(
    make_engine: Callable[..., Engine], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Bench(make_engine, tmp_path)
    assert first.table() == GUESS
    with caplog.at_level(logging.INFO):
        first.measure()
    assert "costs measured" in caplog.text
    assert first.table() != GUESS
    with caplog.at_level(logging.INFO):
        second = Bench(make_engine, tmp_path)
    assert f"costs read from {first.file.path}" in caplog.text
    assert (second.keeper.is_measuring, second.num_engines) == (False, 0)
    assert second.table() == first.table()


def test_a_damaged_file_is_measured_again(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    first = Bench(make_engine, tmp_path)
    first.measure()
    first.file.path.write_text("half of a")
    second = Bench(make_engine, tmp_path)
    assert second.keeper.is_measuring
    second.measure()
    assert first.file.read() == second.table()


def test_what_was_measured_is_news_at_once_and_small_changes_are_none(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    bench = Bench(make_engine, tmp_path)
    bench.keeper.tell()
    assert bench.keeper.news() is None
    bench.measure()
    assert bench.keeper.news() == bench.keeper.table
    bench.keeper.observe(prompts(8), bench.table().packed_cost(8) * 1.5)
    bench.clock.now_s += 1_000
    assert bench.keeper.news() is None


def test_a_planted_wrong_table_is_corrected_by_steps_told_now_and_then_and_kept(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    CostFile(tmp_path, KEY).write(EXTENT.linear(3_000.0, 200.0))
    bench, news = Bench(make_engine, tmp_path), 0
    bench.keeper.tell()
    for index in range(400):
        bench.clock.now_s += 0.1
        bench.keeper.observe(prompts(4 + index % 13), 30.0 + 2.0 * (4 + index % 13))
        news += bench.keeper.news() is not None
    assert 1 <= news <= 4
    assert bench.table().packed_cost(12) == pytest.approx(GUESS.packed_cost(12), rel=0.2)
    assert bench.table().cost(12, 1) == pytest.approx(GUESS.cost(12, 1), rel=0.2)
    bench.keeper.save()
    assert bench.file.read() == bench.table()


def test_what_a_batch_costs_beside_computing_is_told_and_not_kept(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    bench = Bench(make_engine, tmp_path)
    bench.measure()
    bench.keeper.tell()
    measured = bench.table()
    for index in range(30):
        bench.keeper.observe_turn(20.0 + index, 20.0 + index + 500.0)
    bench.clock.now_s += 30
    assert bench.keeper.news() == measured.raised(500.0).encode() == bench.keeper.table
    assert bench.keeper.batch_ms == pytest.approx(500.0)
    bench.keeper.save()
    assert bench.file.read() == measured
    bench.clock.now_s += 60
    assert bench.keeper.news() == measured.encode()
    second = Bench(make_engine, tmp_path)
    assert second.table() == measured


def test_steps_of_decoding_rows_teach_nothing_of_prompts(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    bench = Bench(make_engine, tmp_path)
    before = bench.table()
    bench.keeper.observe(StepWork(4, 0, (), None), 900.0)
    bench.keeper.observe(StepWork(10, 4, ((1, 4),), None), 900.0)
    assert bench.table() == before


def test_rows_to_compute_go_before_a_measurement_which_then_begins_its_sample_again(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    bench = Bench(make_engine, tmp_path)
    for _ in range(5):
        bench.keeper.use_idle_moment()
        bench.keeper.give_way()
    assert bench.keeper.is_measuring
    bench.measure()
    assert bench.num_engines == 1


def test_what_was_measured_on_a_busy_machine_is_used_and_not_kept(
    make_engine: Callable[..., Engine],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pace_measurements(monkeypatch, 0.3)
    bench = Bench(make_engine, tmp_path)
    bench.measure()
    assert bench.table() != GUESS
    bench.keeper.observe(prompts(8), 50.0)
    bench.keeper.save()
    assert bench.file.read() is None
    assert "they are not kept" in caplog.text
    bench.keeper.measure_again()
    pace_measurements(monkeypatch, 1.1)
    bench.measure()
    assert bench.file.read() == bench.table()


def test_without_a_budget_nothing_is_measured_and_nothing_is_on_file(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    bench = Bench(make_engine, tmp_path, budget_ms=0)
    bench.keeper.measure_again()
    bench.keeper.observe(prompts(8), 1.0)
    bench.keeper.save()
    assert not bench.keeper.is_measuring
    assert list(tmp_path.iterdir()) == []


def test_asked_to_it_measures_again_whatever_is_on_file(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    CostFile(tmp_path, KEY).write(EXTENT.linear(3_000.0, 200.0))
    bench = Bench(make_engine, tmp_path)
    bench.keeper.measure_again()
    bench.measure()
    assert bench.table().packed_cost(8) < 3_000.0
    assert bench.file.read() == bench.table()


@pytest.mark.parametrize("error", [RuntimeError("no memory"), InvalidRequestError("no row so long")])
def test_a_measurement_that_fails_leaves_the_table_there_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def no_memory() -> TextScratch:
        raise error

    keeper = CostKeeper(EXTENT, no_memory, worker_class="c", budget_ms=50, file=CostFile(tmp_path, KEY))
    keeper.use_idle_moment()
    assert not keeper.is_measuring
    assert CostTable.decode(keeper.table) == GUESS
    assert str(error) in caplog.text


def test_a_gpu_that_is_lost_while_it_measures_ends_the_process(tmp_path: Path) -> None:
    def lost() -> TextScratch:
        raise DeviceLostError("the GPU is lost")

    keeper = CostKeeper(EXTENT, lost, worker_class="c", budget_ms=50, file=CostFile(tmp_path, KEY))
    with pytest.raises(DeviceLostError):
        keeper.use_idle_moment()
