"""Up to which rate each way to batch keeps its promise: Poisson arrivals, uniform lengths, several seeds.

``--runtime simulated`` is one worker that pads, on a simulated clock, with the scheduler's own code for windows. Its
costs are linear, 3.18 ms a batch and 0.0204 ms a padded token: with them a worker without batching ends 237
requests/s of 2 to 100 tokens and 120 of 5 to 500, as TurboTransformers' figures have it for BERT on an RTX 2060
(arXiv:2010.05680, figures 15 and 16); batches hold 20 requests at most, as there. ``packed`` runs on a worker with the
same costs a token that needs no padding; all others pad.

``--runtime smollm2`` is a whole fleet: a private Valkey, a scheduler, one CPU worker with SmolLM2-135M. Prompts are
random tokens and end with one token. Each way has a fleet of its own for each seed, so that a machine's good and bad
minutes meet all ways; the first one measures its costs before anything is timed, the others read them. Latencies are a
client's, from the moment at which an arrival was due.

A critical rate is the largest at which 99 of 100 requests end within ``--goal-ms``; found by bisection, to one percent
where time is simulated (there 99 of 100 of the last fifth must, too, so that the queue does not grow), to ten where it
is not. The last line is all rows as one JSON document.
"""

import multiprocessing
import statistics
import sys
import tempfile
from argparse import Namespace
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from headrace.config import Batching, Objective, Settings
from headrace.testing.arrival_trial import Prompts
from headrace.testing.fleet_rates import FleetRates
from headrace.testing.queue_simulation import Setup, latencies_ms, poisson_arrivals
from headrace.testing.rate_search import critical_rate, percentile
from headrace.testing.rows import Report, arguments
from headrace.testing.servers import Server
from headrace.workers.costs.table import CostTable
from headrace.workers.model_store.store import default_cache_dir, pull
from headrace.workers.scheduler.partition import Limits
from headrace.workers.scheduler.strategy import Strategy
from headrace.workers.scheduler.trigger import Patience
from headrace.workers.text.tokenizer import Tokenizer

SCRIPT = "scripts/bench/batching.py"
MODEL = "smollm2-135m"
FIXED_MS, TOKEN_MS = 3.18, 0.0204
MAX_ROWS = 20
SIMULATED_LOADS, FLEET_LOADS = (0.5, 0.8, 0.95), (0.5, 0.8)
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
    def label(self) -> str:
        """Of the rows of a simulation, and the end of a fleet's."""
        return f"{self.lengths[0]}-{self.lengths[1]}/{self.name}"

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
        """Of one simulated run."""
        return latencies_ms(self.setup, poisson_arrivals(num_requests, rate_per_s, *self.lengths, seed))


def cases(lengths: tuple[int, int], window: int, names: list[str]) -> list[Case]:
    """The ways of these names. Those that keep the order of arrival need not see more of it than they take."""
    ways = [
        Case("none", "none", "total", 1, lengths),
        Case("naive", "naive", "total", MAX_ROWS, lengths),
        Case("sorted", "sorted", "total", window, lengths),
        Case("dp-total", "dp", "total", window, lengths),
        Case("dp-mean", "dp", "mean", window, lengths),
        Case("packed", "packed", "total", 2 * MAX_ROWS, lengths),
    ]
    if unknown := set(names) - {way.name for way in ways}:
        sys.exit(f"--ways: {', '.join(sorted(unknown))}: there are {', '.join(way.name for way in ways)}")
    return [way for way in ways if way.name in names]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one seed: the critical rate, (p50, p99) in ms below it, and what else there is to tell."""

    critical: float
    below: tuple[tuple[float, float], ...]
    rows_per_batch: float | None = None
    own_rate: float | None = None


def simulate(task: tuple[Case, int, int, float]) -> Outcome:
    """One case with one seed; a process's job."""
    case, num_requests, seed, goal_ms = task

    def holds(rate_per_s: float) -> bool:
        taken = case.latencies_ms(rate_per_s, num_requests, seed)
        return max(percentile(taken, 0.99), percentile(taken[-num_requests // 5 :], 0.99)) <= goal_ms

    critical = critical_rate(holds, 64.0, stride=2.0, precision=1.01)
    runs = [case.latencies_ms(load * critical, num_requests, seed) for load in SIMULATED_LOADS]
    return Outcome(critical, tuple((percentile(run, 0.5), percentile(run, 0.99)) for run in runs))


def try_fleet(rates: FleetRates, seed: int, guess: float | None) -> Outcome:
    """One fleet with one seed."""
    critical = rates.critical_rate(seed, guess, stride=1.2, precision=1.1)
    runs = [rates.latencies_ms(load * critical, seed) for load in FLEET_LOADS]
    below = tuple((percentile(run, 0.5), percentile(run, 0.99)) for run in runs)
    return Outcome(critical, below, rates.rows_per_batch, rates.own_rate_per_s)


def try_fleets(all_cases: list[Case], options: Namespace, goal_ms: float, num_seeds: int) -> dict[str, list[Outcome]]:
    """Every case with every seed, one fleet after the other."""
    model = pull(MODEL, default_cache_dir(), Console(stderr=True))
    prompts = Prompts(Tokenizer.from_folder(model.path).vocab_size, seed=0)
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    with Server("valkey") as server, tempfile.TemporaryDirectory() as cache:
        for seed in range(num_seeds):
            guess: float | None = None
            for case in all_cases:
                settings = Settings.load(
                    redis_url=server.url, model=str(model.path), cache_dir=Path(cache), num_threads=options.threads,
                    measure_ms=options.measure_ms, batching=case.batching, objective=case.objective,
                    window=options.window, max_rows=options.max_rows, max_context_tokens=2_048,
                )  # fmt: skip
                earlier = outcomes[case.label]
                with FleetRates(settings, case.lengths, goal_ms, options.trial_s, prompts) as rates:
                    outcome = try_fleet(rates, seed, earlier[-1].critical if earlier else guess)
                guess = outcome.critical
                earlier.append(outcome)
                print(f"{case.label}, seed {seed}: {outcome}", file=sys.stderr, flush=True)
    return outcomes


def report_case(report: Report, label: str, outcomes: list[Outcome], loads: tuple[float, ...], naive: float) -> None:
    """The rows of one case; ``naive`` is the rate to compare with, 0 for none."""
    rates = [outcome.critical for outcome in outcomes]
    report.add(
        label, "critical_rate", statistics.mean(rates), "requests/s",
        peer="naive" if naive else "", peer_value=naive or None,
    )  # fmt: skip
    report.add(label, "critical_rate_spread", max(rates) - min(rates), "requests/s")
    for i, load in enumerate(loads):
        for j, name in enumerate(("p50", "p99")):
            value = statistics.mean(outcome.below[i][j] for outcome in outcomes)
            report.add(label, f"{name}_at_{load:.0%}", value, "ms")
    sizes = [outcome.rows_per_batch for outcome in outcomes if outcome.rows_per_batch is not None]
    if sizes:
        report.add(label, f"rows_per_batch_at_{loads[-1]:.0%}", statistics.mean(sizes), "rows")
    own_rates = [outcome.own_rate for outcome in outcomes if outcome.own_rate is not None]
    if own_rates:
        report.add(label, "full_steps_rate_by_costs", statistics.mean(own_rates), "requests/s")


def main() -> None:
    options = arguments(
        __doc__.partition("\n")[0],
        [
            ("runtime", "simulated", "simulated, or smollm2 for a fleet"),
            ("ways", "none,naive,sorted,dp-total,dp-mean,packed", "which, with commas"),
            ("lengths", "2-100,5-500", "of prompts, in tokens, with commas"),
            ("seeds", 0, "of arrivals and lengths; 0: 5 simulated, 1 on a fleet"),
            ("goal-ms", 0, "what 99 of 100 requests must keep to; 0: 1,000 simulated, 3,000 on a fleet"),
            ("window", 256, "requests that are cut at once"),
            ("requests", 10_000, "simulated: of one run"),
            ("processes", 2, "simulated: at once"),
            ("trial-s", 15, "fleet: for how long requests arrive in one trial"),
            ("threads", 1, "fleet: of the engine"),
            ("max-rows", 0, "fleet: that the worker runs at once; 0: its default"),
            ("measure-ms", 6_000, "fleet: for which the first one measures its costs"),
        ],
    )
    if options.runtime not in ("simulated", "smollm2"):
        sys.exit(f"--runtime: {options.runtime} is neither simulated nor smollm2")
    simulated = options.runtime == "simulated"
    goal_ms = float(options.goal_ms or (1_000 if simulated else 3_000))
    num_seeds = options.seeds or (5 if simulated else 1)
    prefix, loads = ("batching", SIMULATED_LOADS) if simulated else ("batching/smollm2", FLEET_LOADS)
    prefix += f"/rows-{options.max_rows}" if options.max_rows else ""
    report = Report(SCRIPT, card="simulated: one worker that pads" if simulated else "")
    for text in options.lengths.split(","):
        shortest, _, longest = text.partition("-")
        lengths = int(shortest), int(longest)
        chosen = cases(lengths, options.window, options.ways.split(","))
        if simulated:
            outcomes = {}
            with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
                for case in chosen:
                    tasks = [(case, options.requests, seed, goal_ms) for seed in range(num_seeds)]
                    outcomes[case.label] = pool.map(simulate, tasks, chunksize=1)
        else:
            outcomes = try_fleets(chosen, options, goal_ms, num_seeds)
        means = {label: statistics.mean(outcome.critical for outcome in found) for label, found in outcomes.items()}
        naive = means.get(f"{text}/naive", 0.0)
        for case in chosen:
            label = f"{prefix}/{case.label}"
            report_case(report, label, outcomes[case.label], loads, 0.0 if case.name == "naive" else naive)
            if simulated and case.name == "dp-total" and naive and (margin := PAPER_RATIOS.get(lengths)):
                over_naive = means[case.label] / naive
                report.add(label, "over_naive", over_naive, "", peer="the paper's margin", peer_value=margin)
    report.finish(save=options.save)


if __name__ == "__main__":
    main()
