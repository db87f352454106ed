"""The simulated queue does what can be reckoned by hand, before benchmarks believe it."""

import statistics
from dataclasses import replace

import pytest
from tests.unit.scheduler.tables import UNBOUNDED, linear

from headrace.testing.queue_simulation import Arrival, Setup, latencies_ms, poisson_arrivals
from headrace.workers.scheduler.partition import Item
from headrace.workers.scheduler.strategy import Strategy
from headrace.workers.scheduler.trigger import Patience

HUNGRY = Patience("hungry", window=64, lazy_timeout_ms=50, latency_goal_ms=200)
NAIVE = Setup(Strategy("naive", "total"), HUNGRY, linear(10.0, 1.0), replace(UNBOUNDED, max_rows=4), 1)


def test_requests_wait_for_the_batch_that_runs_and_then_share_one() -> None:
    arrivals = [Arrival(0.0, Item(10, 10)), Arrival(5.0, Item(1, 1)), Arrival(6.0, Item(3, 3))]
    # 20 ms for the first one; the second is handed over at once and runs alone, since the backlog holds one batch.
    assert latencies_ms(NAIVE, arrivals) == [20.0, 20.0 + 11 - 5, 31.0 + 13 - 6]
    lazy = replace(NAIVE, patience=replace(HUNGRY, trigger="lazy", lazy_timeout_ms=15))
    # A lazy one waits until 15 and takes all three: 10 ms, and 3 rows padded to 10.
    assert latencies_ms(lazy, arrivals) == [55.0, 50.0, 49.0]


def test_a_single_server_without_batches_waits_as_queueing_theory_says() -> None:
    setup = replace(NAIVE, strategy=Strategy("none", "total"), table=linear(10.0, 0.0))
    arrivals = poisson_arrivals(20_000, rate_per_s=50.0, shortest=5, longest=5, seed=1)
    # M/D/1 at half load: a wait of rho / (2 (1 - rho)) services, and the service itself (Pollaczek and Khinchine).
    assert statistics.mean(latencies_ms(setup, arrivals)) == pytest.approx(10 * (1 + 0.5 / (2 * 0.5)), rel=0.03)


def test_every_request_is_served_once_and_not_before_it_came() -> None:
    for strategy in (Strategy("dp", "total"), Strategy("dp", "mean", 1_000), Strategy("sorted", "total")):
        arrivals = poisson_arrivals(500, rate_per_s=400.0, shortest=2, longest=100, seed=2)
        taken = latencies_ms(replace(NAIVE, strategy=strategy, max_backlog_batches=2), arrivals)
        assert all(11 < latency < float("inf") for latency in taken)
