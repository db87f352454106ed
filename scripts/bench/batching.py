"""Up to which rate each way to batch keeps its promise: Poisson arrivals, uniform lengths, five seeds.

This simulates one worker that pads, on a simulated clock, with the scheduler's own code for cutting windows. Its costs
are linear, 3.18 ms a batch and 0.0204 ms a padded token: with them a worker without batching ends 237 requests/s of 2
to 100 tokens and 120 of 5 to 500, as TurboTransformers' figures have it for BERT on an RTX 2060 (arXiv:2010.05680,
figures 15 and 16); batches hold 20 requests at most, as there. ``packed`` runs on a worker with the same costs a token
that needs no padding; all others pad.

A critical rate is the largest at which 99 of 100 requests end within ``--goal-ms``, and 99 of 100 of the last fifth,
too, so that the queue does not grow; found by bisection to one percent. The last line is all rows as one JSON document.
"""

import math
import multiprocessing
import statistics
from dataclasses import dataclass

from headrace.config import Batching, Objective
from headrace.testing.queue_simulation import Setup, latencies_ms, poisson_arrivals
from headrace.testing.rows import Report, arguments
from headrace.workers.costs.table import CostTable
from headrace.workers.scheduler.partition import Limits
from headrace.workers.scheduler.strategy import Strategy
from headrace.workers.scheduler.trigger import Patience

FIXED_MS, TOKEN_MS = 3.18, 0.0204
MAX_ROWS = 20
RANGES = ((2, 100), (5, 500))
LOADS = (0.5, 0.8, 0.95)
#: What the paper found DP to be worth, over batches in the order of arrival.
PAPER_RATIOS = {(2, 100): 1.24, (5, 500): 1.47}
#: How far an objective may let others overtake a request.
OVERTAKING_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Case:
    """One way to batch, on one range of lengths."""

    name: str
    batching: Batching
    objective: Objective
    window: int
    lengths: tuple[int, int]

    @property
    def setup(self) -> Setup:
        """What is simulated."""
        table = CostTable.linear(FIXED_MS, TOKEN_MS, 512, MAX_ROWS, packs=self.batching == "packed")
        return Setup(
            Strategy(self.batching, self.objective, OVERTAKING_TOKENS),
            Patience("hungry", self.window, 0, 1),
            table,
            Limits(MAX_ROWS, 1 << 40, 1 << 40),
            max_backlog_batches=1,
        )

    def latencies_ms(self, rate_per_s: float, num_requests: int, seed: int) -> list[float]:
        """Of one run."""
        return latencies_ms(self.setup, poisson_arrivals(num_requests, rate_per_s, *self.lengths, seed))


def cases(lengths: tuple[int, int], window: int) -> list[Case]:
    """All ways. Those that keep the order of arrival need not see more of it than they take."""
    return [
        Case("none", "none", "total", 1, lengths),
        Case("naive", "naive", "total", MAX_ROWS, lengths),
        Case("sorted", "sorted", "total", window, lengths),
        Case("dp-total", "dp", "total", window, lengths),
        Case("dp-mean", "dp", "mean", window, lengths),
        Case("packed", "packed", "total", 2 * MAX_ROWS, lengths),
    ]


def percentile(values: list[float], share: float) -> float:
    """The smallest value that so large a share does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def critical_rate(case: Case, num_requests: int, seed: int, goal_ms: float) -> float:
    """The largest rate, in requests/s, at which p99 keeps to the goal."""

    def holds(rate_per_s: float) -> bool:
        taken = case.latencies_ms(rate_per_s, num_requests, seed)
        return max(percentile(taken, 0.99), percentile(taken[-num_requests // 5 :], 0.99)) <= goal_ms

    low, high = 1.0, 64.0
    while holds(high):
        low, high = high, 2 * high
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one seed: the critical rate, and (p50, p99) in ms below it."""

    critical: float
    below: tuple[tuple[float, float], ...]


def measure(task: tuple[Case, int, int, float]) -> Outcome:
    """One case with one seed; a process's job."""
    case, num_requests, seed, goal_ms = task
    critical = critical_rate(case, num_requests, seed, goal_ms)
    runs = [case.latencies_ms(load * critical, num_requests, seed) for load in LOADS]
    return Outcome(critical, tuple((percentile(run, 0.5), percentile(run, 0.99)) for run in runs))


def main() -> None:
    options = arguments(
        __doc__.partition("\n")[0],
        [
            ("requests", 10_000, "requests of one run"),
            ("seeds", 5, "of arrivals and lengths"),
            ("goal-ms", 1_000, "what 99 of 100 requests must keep to"),
            ("window", 256, "requests that are cut at once"),
            ("processes", 2, "simulations at once"),
        ],
    )
    report = Report("scripts/bench/batching.py", card="simulated: one worker that pads")
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for lengths in RANGES:
            naive = 0.0
            for case in cases(lengths, options.window):
                tasks = [(case, options.requests, seed, float(options.goal_ms)) for seed in range(options.seeds)]
                outcomes = pool.map(measure, tasks, chunksize=1)
                label = f"batching/{lengths[0]}-{lengths[1]}/{case.name}"
                rates = [outcome.critical for outcome in outcomes]
                rate = statistics.mean(rates)
                naive = rate if case.name == "naive" else naive
                compared = naive > 0 and case.name != "naive"
                report.add(
                    label, "critical_rate", rate, "requests/s",
                    peer="naive" if compared else "", peer_value=naive if compared else None,
                )  # fmt: skip
                report.add(label, "critical_rate_spread", max(rates) - min(rates), "requests/s")
                for i, load in enumerate(LOADS):
                    for j, name in enumerate(("p50", "p99")):
                        value = statistics.mean(outcome.below[i][j] for outcome in outcomes)
                        report.add(label, f"{name}_at_{load:.0%}", value, "ms")
                if case.name == "dp-total":
                    margin = PAPER_RATIOS[lengths]
                    report.add(label, "over_naive", rate / naive, "", peer="the paper's margin", peer_value=margin)
    report.finish(save=options.save)


if __name__ == "__main__":
    main()
