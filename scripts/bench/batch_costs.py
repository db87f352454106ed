"""What a table of costs that errs does to the rate that an encoder keeps, on a simulated clock.

What batches take is fixed: all-MiniLM-L6-v2 in fp32 on one thread, the best processor time of seven for texts of 2 to
100 tokens, of 5 to 500 what their attention adds; and beside it, where one core does all, 6 ms a batch and 2 ms a
request for scheduler, server and courier. Windows of 256 are cut as a fleet does, 64 requests and three batches ahead,
by tables that were measured with packed tokens on texts of up to half of them (``long``) or up to 128 (``short``),
every point wrong by a random factor (normal logarithms; six draws, six seeds of arrivals), and that hold nothing for a
batch beside its computing, or 6 or 24 ms. ``auto`` has cells, too, that err as much. A critical rate is the largest at
which p99 is within 1,000 ms (of 2 to 100 tokens) or 2,000 ms, to two percent.
"""

import math
import multiprocessing
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from headrace.config import Batching
from headrace.testing.queue_simulation import Setup, latencies_ms, poisson_arrivals
from headrace.testing.rate_search import critical_rate, percentile
from headrace.testing.rows import Report, arguments
from headrace.workers.costs.building import build_table
from headrace.workers.costs.table import CostTable
from headrace.workers.scheduler.partition import Limits
from headrace.workers.scheduler.strategy import Strategy
from headrace.workers.scheduler.trigger import Patience

SCRIPT = "scripts/bench/batch_costs.py"
SHORT = {8: 4.8, 32: 8.1, 64: 12.2, 128: 18.5, 256: 37.0, 512: 73.0, 1024: 144.0, 2048: 300.0, 4096: 620.0}
LONG = SHORT | {256: 36.5, 512: 79.7, 1024: 159.0, 2048: 327.0, 4096: 670.0}
LENGTHS, BATCH_SIZES = (4, 16, 64, 256), (1, 2, 4, 8, 16, 32, 64, 128)
BATCH_MS, REQUEST_MS, ATTENTION_MS = 6.0, 2.0, 2e-5
GOALS_MS = {(2, 100): 1_000.0, (5, 500): 2_000.0}
#: Requests of one trial, and where a search begins.
SIZES = {(2, 100): (2_000, 100.0), (5, 500): (1_000, 22.0)}
NUM_DRAWS = 6


@dataclass(frozen=True, slots=True)
class Case:
    """One way to cut, by one kind of table."""

    lengths: tuple[int, int]
    batching: Batching
    line: str
    error: float
    told_ms: float

    @property
    def label(self) -> str:
        """Of its rows."""
        low, high = self.lengths
        return f"{low}-{high}/{self.batching}/{self.line}/error-{self.error:g}/told-{self.told_ms:g}ms"

    def table(self, draw: int) -> CostTable:
        """What windows are cut by."""
        pick = random.Random(f"table {draw}")

        def wrong(costs: Mapping[int, float]) -> dict[int, float]:
            return {tokens: cost * math.exp(pick.gauss(0, self.error)) for tokens, cost in costs.items()}

        packed = wrong(SHORT if self.line == "short" else LONG)
        true = build_table({}, SHORT, LENGTHS, BATCH_SIZES)
        sizes = [size for size in product(LENGTHS, BATCH_SIZES) if size[0] * size[1] <= max(SHORT)]
        cells = {size: true.packed_cost(math.prod(size)) * math.exp(pick.gauss(0, self.error)) for size in sizes}
        return build_table(cells, packed, LENGTHS, BATCH_SIZES).raised(self.told_ms)


def rate(task: tuple[Case, int]) -> float:
    """The critical rate of a case with one draw."""
    case, draw = task
    true = build_table({}, SHORT, LENGTHS, BATCH_SIZES)

    def run(lengths: Sequence[int], cost_ms: float) -> list[float]:
        own_ms = true.packed_cost(sum(lengths))
        if case.lengths[1] > 100:
            own_ms += sum(ATTENTION_MS * length**2 for length in lengths)
        return [own_ms + BATCH_MS + REQUEST_MS * len(lengths)] * len(lengths)

    setup = Setup(
        Strategy(case.batching, "total"), Patience("hungry", 256, 0, 1), case.table(draw),
        Limits(64, 1 << 40, 16_384), max_backlog_batches=2, run=run,
    )  # fmt: skip
    count, guess = SIZES[case.lengths]
    goal_ms = GOALS_MS[case.lengths]

    def holds(rate_per_s: float) -> bool:
        arrivals = poisson_arrivals(count, rate_per_s, *case.lengths, draw)
        taken = latencies_ms(setup, arrivals, goal_ms=goal_ms, max_late=count // 100)
        return percentile(taken, 0.99) <= goal_ms

    return critical_rate(holds, guess, stride=1.1, precision=1.02)


def main() -> None:
    options = arguments(__doc__.partition("\n")[0], [("processes", 2, "at once")])
    report = Report(SCRIPT, card="simulated: an encoder on one core that does all")
    told = (0.0, BATCH_MS, 4 * BATCH_MS)
    cases: list[Case] = []
    for lengths in GOALS_MS:
        cases.append(Case(lengths, "naive", "short", 0.0, 0.0))
        cases += [Case(lengths, "packed", *rest) for rest in product(("long", "short"), (0.0, 0.2), told)]
        cases += [Case(lengths, "auto", "short", 0.2, told_ms) for told_ms in told]
    base: dict[tuple[int, int], float] = {}
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for case in cases:
            rates = pool.map(rate, [(case, draw) for draw in range(NUM_DRAWS)], chunksize=1)
            mean = statistics.mean(rates)
            naive = base.setdefault(case.lengths, mean)
            peer = "" if case.batching == "naive" else "naive"
            label = f"batch-costs/{case.label}"
            report.add(
                label, "critical_rate", mean, "requests/s", peer=peer, peer_value=naive if peer else None,
                rounds=NUM_DRAWS,
            )  # fmt: skip
            report.add(label, "critical_rate_least", min(rates), "requests/s")
            print(f"{case.label}: {mean:.1f}, least {min(rates):.1f}, over naive {mean / naive:.3f}", flush=True)
    report.finish(save=options.save)


if __name__ == "__main__":
    main()
