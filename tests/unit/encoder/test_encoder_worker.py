"""The encoder of the serving experiment computes what it says, and its clock sees each text's end."""

import itertools
import math

import pytest
import torch
from tests.unit.encoder.tiny import TINY_BERT

from headrace.errors import ConfigurationError, MeasurementError
from headrace.testing.encoder_rates import EncoderRates, chosen_ways, encoder_ways
from headrace.testing.encoder_worker import EncoderWorker
from headrace.testing.stub_encoder import WIDTH, StubEncoder
from headrace.workers.encoder.engine import EncoderEngine
from headrace.workers.encoder.findings import Findings
from headrace.workers.engine.measurement import Extent


def worker_of(packed: StubEncoder, padded: StubEncoder, *, step_tokens: int, makes_equal: bool) -> EncoderWorker:
    """Whose clock moves on by a second whenever somebody looks at it."""
    ticks = itertools.count()
    engine = EncoderEngine(packed, Findings(WIDTH, False), step_tokens=step_tokens)
    return EncoderWorker(
        packed, padded, engine, vocab_size=9, step_tokens=step_tokens, makes_equal=makes_equal, padded_runs=2,
        clock_s=lambda: float(next(ticks)),
    )  # fmt: skip


def test_packed_texts_end_with_the_step_that_computes_them() -> None:
    packed = StubEncoder()
    worker = worker_of(packed, StubEncoder(), step_tokens=10, makes_equal=False)
    # The shortest first, ten tokens a step; the clock is looked at before the first step and behind each.
    assert worker.run_packed([8, 3, 6, 30]) == [2000.0, 1000.0, 1000.0, 3000.0]
    assert packed.batches == [[3, 6], [8], [30]]


def test_a_text_that_cannot_be_computed_stops_the_experiment() -> None:
    packed = StubEncoder()
    packed.error = RuntimeError("out of memory")
    with pytest.raises(MeasurementError, match="out of memory"):
        worker_of(packed, StubEncoder(), step_tokens=10, makes_equal=False).run_packed([4])


def test_padded_texts_end_together_and_a_shape_is_computed_a_few_times_only() -> None:
    padded = StubEncoder()
    worker = worker_of(StubEncoder(), padded, step_tokens=10, makes_equal=True)
    assert [worker.run_padded([4, 9, 2]) for _ in range(3)] == [[1000.0] * 3] * 3
    assert worker.run_padded([9, 9]) == [1000.0] * 2
    assert padded.batches == [[9, 9, 9], [9, 9, 9], [9, 9]]


def test_a_runtime_that_pads_itself_is_given_the_rows_as_they_are() -> None:
    padded = StubEncoder()
    worker_of(StubEncoder(), padded, step_tokens=10, makes_equal=False).run_padded([4, 9, 2])
    assert padded.batches == [[4, 9, 2]]


def test_cells_are_measured_on_the_padded_runtime_and_packed_sizes_on_the_other() -> None:
    packed, padded = StubEncoder(), StubEncoder()
    worker = worker_of(packed, padded, step_tokens=1 << 20, makes_equal=False)
    table = worker.costs(Extent(16, 4, 63), 1e9, pads=True)
    assert table.packs
    assert {(len(rows), rows[0]) for rows in padded.batches} >= {(1, 16), (2, 16), (2, 4)}
    assert all(len(set(rows)) == 1 for rows in padded.batches)
    assert {sum(rows) for rows in packed.batches} == {8, 32}


def test_a_search_finds_the_rate_that_a_real_model_keeps_up_with() -> None:
    worker = EncoderWorker.on_gpu(TINY_BERT, torch.device("cpu"), torch.float32, max_graphs=1)
    rates = EncoderRates(worker, (2, 40), goal_ms=200.0, trial_s=0.2, measure_ms=300.0)
    for way in chosen_ways(["none", "fleet"]):
        found = rates.critical_rate(way, 0, rates.first_guess, stride=2.0, precision=2.0)
        taken = rates.latencies_ms(way, found / 8, 0)
        assert len(taken) >= 100
        assert all(0 < latency_ms < math.inf for latency_ms in taken)


def test_a_way_may_put_as_many_rows_into_a_batch_as_its_name_says() -> None:
    rows = {way.name: way.max_rows for way in chosen_ways([])}
    assert {name: rows[name] for name in ("naive", "dp-total", "packed-dp")} == dict.fromkeys(
        ("naive", "dp-total", "packed-dp"), 20
    )
    assert {name: count for name, count in rows.items() if name.endswith("-64")} == dict.fromkeys(
        ("naive-64", "dp-total-64", "packed-dp-64"), 64
    )


def test_a_way_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigurationError, match="no way fastest: there are naive, naive-64, none"):
        chosen_ways(["none", "fastest"])
    assert [way.name for way in chosen_ways([])] == list(encoder_ways())
