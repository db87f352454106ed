"""The simulated queue does what can be reckoned by hand, before benchmarks believe it."""

import math
import statistics
from collections.abc import Sequence
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


def test_a_worker_of_its_own_says_when_each_request_ends_and_is_free_behind_the_last() -> None:
    def run(lengths: Sequence[int], cost_ms: float) -> list[float]:
        return [10.0 * place for place in range(1, len(lengths) + 1)]

    setup = replace(NAIVE, run=run, max_backlog_batches=0)
    arrivals = [Arrival(0.0, Item(1, 1)), *(Arrival(at_ms, Item(1, 1)) for at_ms in (1.0, 2.0, 15.0))]
    # The second and the third wait for the first one, which takes until 10; the last one for them, until 30.
    assert latencies_ms(setup, arrivals) == [10.0, 20.0 - 1, 30.0 - 2, 40.0 - 15]


def test_without_a_backlog_a_window_is_cut_when_the_worker_is_free() -> None:
    arrivals = [Arrival(0.0, Item(10, 10)), Arrival(5.0, Item(1, 1)), Arrival(6.0, Item(3, 3))]
    # 20 ms for the first one, and then both others together, padded to 3 tokens.
    assert latencies_ms(replace(NAIVE, max_backlog_batches=0), arrivals) == [20.0, 20.0 + 16 - 5, 20.0 + 16 - 6]


def test_the_last_batch_of_a_window_stays_while_others_wait_and_rows_may_join_it() -> None:
    arrivals = [Arrival(at_ms, Item(1, 1)) for at_ms in (0.0, 1.0, 2.0, 3.0)]
    # By default the second, third and fourth run alone, as each comes: 11 ms a batch.
    ahead = replace(NAIVE, max_backlog_batches=3)
    assert latencies_ms(ahead, arrivals) == [11.0, 22.0 - 1, 33.0 - 2, 44.0 - 3]
    # Held back, the last two share one: 12 ms.
    assert latencies_ms(replace(ahead, held_from=1), arrivals) == [11.0, 22.0 - 1, 34.0 - 2, 34.0 - 3]
    # A full batch gains nothing by staying.
    full = replace(ahead, held_from=1, limits=replace(UNBOUNDED, max_rows=1))
    assert latencies_ms(full, arrivals) == [11.0, 22.0 - 1, 33.0 - 2, 44.0 - 3]


def test_a_run_ends_early_when_too_many_are_late() -> None:
    arrivals = [Arrival(0.0, Item(10, 10))] * 9
    # Four rows take 50 ms, so that the second batch ends after 100; one late request is forgiven.
    taken = latencies_ms(NAIVE, arrivals, goal_ms=60.0, max_late=1)
    assert taken == [50.0] * 4 + [100.0] * 4 + [math.inf]
    assert latencies_ms(NAIVE, arrivals, goal_ms=60.0, max_late=4) == [50.0] * 4 + [100.0] * 4 + [120.0]
