"""Up to which rate each way to batch keeps its promise: Poisson arrivals, uniform lengths, several seeds.

``--runtime simulated`` is one worker that pads, on a simulated clock, with the scheduler's own code for windows. Its
costs are linear, 3.18 ms a batch and 0.0204 ms a padded token: with them a worker without batching ends 237
requests/s of 2 to 100 tokens and 120 of 5 to 500, as TurboTransformers' figures have it for BERT on an RTX 2060
(arXiv:2010.05680, figures 15 and 16); batches hold 20 requests at most, as there. ``packed`` runs on a worker with the
same costs a token that needs no padding; all others pad.

``--runtime smollm2`` is a whole fleet: a private Valkey, a scheduler, one CPU worker with SmolLM2-135M. Prompts are
random tokens and end with one token. Each way has a fleet of its own for each seed, so that a machine's good and bad
minutes meet all ways; the first one measures its costs before anything is timed, the others read them. Latencies are a
client's, from the moment at which an arrival was due. ``--runtime minilm-fleet`` is one with all-MiniLM-L6-v2 and
embeddings, where whatever is cut is computed packed; ``auto`` is its default.

``--runtime minilm`` is an encoder on a CPU, all-MiniLM-L6-v2 in fp32, ``--runtime bert-base`` one on a GPU, BERT-base's
shape in fp16 with random weights. Arrivals and the clock are simulated; every batch that the scheduler's own strategy
cuts is really computed, and the clock moves on by what that took (on one thread of a CPU: what the process computed,
corrected for the machine's pace; ``headrace.testing.encoder_worker``). A batch is cut when the encoder is free, of 20
requests at most, or of 64 where a way's name ends with that. ``packed`` and ``packed-dp`` compute rows behind each
other by the worker's own engine, in the order of arrival as far as they go, and cut by the dynamic program over the
measured costs of packed tokens; all others compute what they pad. ``fleet`` is what a fleet does by default: 64
requests, and batches that are cut ahead. Latencies are told at shares of the rate at which the first way is critical,
``naive`` where it is among them. Seeds may run side by side: each run gets its ``--first-seed`` and ``--seeds`` and all
the same ``--folder``, of which ``--join`` makes the rows.

A critical rate is the largest at which 99 of 100 requests end within ``--goal-ms``; found by bisection, to one percent
where costs are simulated (there 99 of 100 of the last fifth must, too, so that the queue does not grow), to five and
ten where they are not. The last line is all rows as one JSON document.
"""

import json
import multiprocessing
import sys
import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from headrace.config import Batching, Objective, Settings
from headrace.errors import ConfigurationError
from headrace.testing.arrival_trial import Prompts
from headrace.testing.encoder_rates import EncoderRates, chosen_ways
from headrace.testing.encoder_trials import ENCODER_LOADS, MINILM, encoder_worker, try_seeds
from headrace.testing.fleet_rates import FleetRates
from headrace.testing.queue_simulation import Setup, latencies_ms, poisson_arrivals
from headrace.testing.rate_outcome import Outcome, report_all
from headrace.testing.rate_search import critical_rate, percentile
from headrace.testing.rows import Report, arguments, origin
from headrace.testing.seed_file import SeedFound, join
from headrace.testing.servers import Server
from headrace.workers.costs.table import CostTable
from headrace.workers.model_store.store import default_cache_dir, pull
from headrace.workers.scheduler.partition import Limits
from headrace.workers.scheduler.strategy import Strategy
from headrace.workers.scheduler.trigger import Patience

SCRIPT = "scripts/bench/batching.py"
MODEL = "smollm2-135m"
FIXED_MS, TOKEN_MS = 3.18, 0.0204
MAX_ROWS = 20
SIMULATED_LOADS, FLEET_LOADS = (0.5, 0.8, 0.95), (0.5, 0.8)
GRAPHS = Settings.model_fields["encoder_graphs"].default
BACKLOG = Settings.model_fields["max_backlog_batches"].default
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


def cases(lengths: tuple[int, int], window: int, names: str) -> list[Case]:
    """The ways of these names, with commas; of none: all but ``auto``.

    Those that keep the order of arrival need not see more of it than they take.
    """
    ways = [
        Case("none", "none", "total", 1, lengths),
        Case("naive", "naive", "total", MAX_ROWS, lengths),
        Case("sorted", "sorted", "total", window, lengths),
        Case("dp-total", "dp", "total", window, lengths),
        Case("dp-mean", "dp", "mean", window, lengths),
        Case("packed", "packed", "total", 2 * MAX_ROWS, lengths),
        Case("auto", "auto", "total", window, lengths),
    ]
    wanted = set(names.split(",")) if names else {way.name for way in ways} - {"auto"}
    if unknown := wanted - {way.name for way in ways}:
        sys.exit(f"--ways: {', '.join(sorted(unknown))}: there are {', '.join(way.name for way in ways)}")
    return [way for way in ways if way.name in wanted]


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
    embeds = options.runtime == "minilm-fleet"
    model = pull(MINILM if embeds else MODEL, default_cache_dir(), Console(stderr=True))
    vocab_size = json.loads((model.path / "config.json").read_text())["vocab_size"]
    prompts = Prompts(vocab_size, seed=0)
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    with Server("valkey") as server, tempfile.TemporaryDirectory() as cache:
        for seed in range(num_seeds):
            guess: float | None = None
            for case in all_cases:
                settings = Settings.load(
                    redis_url=server.url, model=str(model.path), cache_dir=Path(cache), num_threads=options.threads,
                    measure_ms=options.measure_ms, batching=case.batching, objective=case.objective,
                    window=options.window, max_rows=options.max_rows, max_context_tokens=2_048,
                    max_backlog_batches=options.backlog,
                )  # fmt: skip
                earlier = outcomes[case.label]
                trial_s = options.trial_ms / 1000
                with FleetRates(settings, case.lengths, goal_ms, trial_s, prompts, embeds=embeds) as rates:
                    outcome = try_fleet(rates, seed, earlier[-1].critical if earlier else guess)
                guess = outcome.critical
                earlier.append(outcome)
                print(f"{case.label}, seed {seed}: {outcome}", file=sys.stderr, flush=True)
    return outcomes


def main() -> None:
    options = arguments(
        __doc__.partition("\n")[0],
        [
            ("runtime", "simulated", "simulated; smollm2 or minilm-fleet: a fleet; minilm or bert-base: an encoder"),
            ("ways", "", "which, with commas; default: all of the runtime's"),
            ("lengths", "2-100,5-500", "of prompts, in tokens, with commas"),
            ("seeds", 0, "of arrivals and lengths; 0: 1 on a fleet, else 5"),
            ("first-seed", 0, "encoder: the first of them"),
            ("folder", "", "encoder: where each seed's outcomes are kept, for --join; no rows then"),
            ("join", "", "encoder: measure nothing, make the rows of all seeds in this folder"),
            ("goal-ms", 0, "what 99 of 100 requests must keep to; 0: 3,000 on a fleet, bert-base 25, else 1,000"),
            ("window", 256, "requests that are cut at once"),
            ("requests", 10_000, "simulated: of one run"),
            ("processes", 2, "simulated: at once"),
            ("trial-ms", 15_000, "fleet, encoder: for how long requests arrive in one trial"),
            ("warm-up-ms", 2_000, "encoder: for how long they do before anything is timed, for each way"),
            ("budget-s", 0, "encoder: for all seeds of one range of lengths, of which one is tried at least; 0: any"),
            ("threads", 1, "fleet, minilm: of the engine"),
            ("graphs", GRAPHS, "bert-base: captured sizes that are kept"),
            ("backlog", BACKLOG, "fleet: batches that may wait for the worker"),
            ("max-rows", 0, "fleet: that the worker runs at once; 0: its default"),
            ("measure-ms", 6_000, "fleet, encoder: for which the costs are measured first"),
        ],
    )
    runtimes = {
        "simulated": run_simulated, "smollm2": run_fleets, "minilm-fleet": run_fleets,
        "minilm": run_encoder, "bert-base": run_encoder,
    }  # fmt: skip
    if options.runtime not in runtimes:
        sys.exit(f"--runtime: {options.runtime} is none of {', '.join(runtimes)}")
    options.goal_ms = float(options.goal_ms or default_goal_ms(options.runtime))
    options.seeds = options.seeds or (1 if options.runtime == "smollm2" else 5)
    report = Report(SCRIPT, card="simulated: one worker that pads" if options.runtime == "simulated" else "")
    try:
        if options.join:
            join_folder(report, options)
            return
        for text in options.lengths.split(","):
            shortest, _, longest = text.partition("-")
            runtimes[options.runtime](report, options, (int(shortest), int(longest)))
    finally:
        report.finish(save=options.save)


def default_goal_ms(runtime: str) -> float:
    """Of p99, where nothing is said; rows of other goals say so."""
    return {"smollm2": 3_000.0, "bert-base": 25.0}.get(runtime, 1_000.0)


def run_simulated(report: Report, options: Namespace, lengths: tuple[int, int]) -> None:
    chosen = cases(lengths, options.window, options.ways)
    outcomes = {}
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for case in chosen:
            tasks = [(case, options.requests, seed, options.goal_ms) for seed in range(options.seeds)]
            outcomes[case.label] = pool.map(simulate, tasks, chunksize=1)
    report_all(report, "batching", outcomes, SIMULATED_LOADS, lengths)


def run_fleets(report: Report, options: Namespace, lengths: tuple[int, int]) -> None:
    outcomes = try_fleets(cases(lengths, options.window, options.ways), options, options.goal_ms, options.seeds)
    prefix = f"batching/{options.runtime}" + (f"/rows-{options.max_rows}" if options.max_rows else "")
    prefix += f"/backlog-{options.backlog}" if options.backlog != BACKLOG else ""
    report_all(report, prefix, outcomes, FLEET_LOADS, lengths)


def run_encoder(report: Report, options: Namespace, lengths: tuple[int, int]) -> None:
    try:
        ways = chosen_ways(options.ways.split(",") if options.ways else [])
    except ConfigurationError as error:
        sys.exit(f"--ways: {error}")
    worker = encoder_worker(options.runtime, options.threads, options.graphs)
    rates = EncoderRates(worker, lengths, options.goal_ms, options.trial_ms / 1000, options.measure_ms)
    print(f"costs: {rates.tables}", file=sys.stderr, flush=True)
    case = f"batching/{options.runtime}" + (f"/graphs-{options.graphs}" if options.graphs != GRAPHS else "")
    case += f"/goal-{options.goal_ms:g}" if options.goal_ms != default_goal_ms(options.runtime) else ""
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    found: dict[int, SeedFound] = {}
    begin_s = time.monotonic()
    try:
        for seed, name, outcome in try_seeds(rates, ways, seeds, options.warm_up_ms / 1000, options.budget_s):
            earlier = found[seed].outcomes if seed in found else {}
            found[seed] = SeedFound(case, lengths, seed, origin(), {**earlier, name: outcome})
            after_s = time.monotonic() - begin_s
            print(f"{lengths}, {name}, seed {seed}: {outcome}, after {after_s:.0f} s", file=sys.stderr, flush=True)
            if options.folder:
                names = (*case.split("/"), f"{lengths[0]}-{lengths[1]}", str(seed), *(way.name for way in ways))
                found[seed].save(Path(options.folder) / f"{'_'.join(names)}.json")
    finally:
        # Whatever ends a long run, what it has found is kept.
        if not options.folder:
            report_joined(report, found.values())


def join_folder(report: Report, options: Namespace) -> None:
    """The rows of all that runs with ``--folder`` have left there."""
    paths = sorted(Path(options.join).glob("*.json"))
    if not paths:
        sys.exit(f"--join: there is no .json file in {options.join}")
    try:
        report_joined(report, [SeedFound.read(path) for path in paths])
    except ConfigurationError as error:
        sys.exit(f"--join: {error}")


def report_joined(report: Report, found: Iterable[SeedFound]) -> None:
    for joined in join(found):
        shortest, longest = joined.lengths
        outcomes = {f"{shortest}-{longest}/{way}": results for way, results in joined.outcomes.items()}
        report.origin = joined.origin
        report_all(report, joined.case, outcomes, ENCODER_LOADS, joined.lengths, "_of_naive")


if __name__ == "__main__":
    main()
