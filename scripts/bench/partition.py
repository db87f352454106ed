"""How long it takes to partition a window, and how far its plans are from the best of all plans.

``python scripts/bench/partition.py`` takes the processor time of windows of 10,000 requests for each way to cut them,
with a table that nobody has asked before and with one whose cells are known. Then it compares mean completion times and
missed deadlines with an exhaustive search over all partitions and all orders, on windows of six requests: the dynamic
program is exact only for the orders that it considers. The last line is all rows as one JSON document.
"""

import math
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import permutations

from headrace.config import Batching, Objective
from headrace.testing.rows import Report, arguments
from headrace.workers.costs.table import CostTable
from headrace.workers.scheduler.partition import Item, Limits
from headrace.workers.scheduler.plan import Plan
from headrace.workers.scheduler.strategy import Strategy

WAYS: tuple[tuple[Batching, Objective], ...] = (
    ("naive", "total"), ("sorted", "total"), ("packed", "total"), ("dp", "total"), ("dp", "mean"), ("dp", "misses"),
)  # fmt: skip

GOAL_MS = 50.0
#: Requests of a window that is searched exhaustively.
SMALL = 6


def window(
    chance: random.Random, num_items: int, longest: int, deadline_ms: float, share_due: float = 1 / 3
) -> list[Item]:
    """Requests of uniform lengths; a share of them has a deadline, uniform up to ``deadline_ms``."""
    return [
        Item(length, length + 64, chance.uniform(0, deadline_ms) if chance.random() < share_due else math.inf, 64.0 * i)
        for i, length in enumerate(chance.choices(range(5, longest + 1), k=num_items))
    ]


def times_ms(batching: Batching, objective: Objective, items: Sequence[Item], max_rows: int) -> tuple[float, float]:
    """Processor time (ms) with a fresh table, and the median of five with the same one."""
    strategy, limits = Strategy(batching, objective), Limits(max_rows, 1 << 40, 16_384)
    table = CostTable.linear(2.0, 0.01, 8_192, max_rows)
    taken = []
    for _ in range(6):
        begin_s = time.process_time()
        strategy.plan(items, table, limits)
        taken.append(1e3 * (time.process_time() - begin_s))
    return taken[0], statistics.median(taken[1:])


def set_partitions(indices: Sequence[int]) -> Iterator[list[list[int]]]:
    """Every way to split indices into batches."""
    if not indices:
        yield []
        return
    for smaller in set_partitions(indices[1:]):
        yield [[indices[0]], *smaller]
        for i, batch in enumerate(smaller):
            yield [*smaller[:i], [indices[0], *batch], *smaller[i + 1 :]]


def best_mean_ms(items: Sequence[Item], table: CostTable) -> float:
    """Over all partitions; of a partition's orders Smith's rule gives the best."""
    least = math.inf
    for split in set_partitions(range(len(items))):
        costs = [(table.cost(max(items[i].length for i in batch), len(batch)), len(batch)) for batch in split]
        now_ms = waited_ms = 0.0
        for cost_ms, num_rows in sorted(costs, key=lambda pair: pair[0] / pair[1]):
            now_ms += cost_ms
            waited_ms += now_ms * num_rows
        least = min(least, waited_ms / len(items))
    return least


def fewest_missed(items: Sequence[Item], table: CostTable) -> int:
    """Over all partitions and orders."""
    fewest = len(items)
    for split in set_partitions(range(len(items))):
        priced = [(table.cost(max(items[i].length for i in batch), len(batch)), batch) for batch in split]
        for order in permutations(priced):
            now_ms, num_missed = 0.0, 0
            for cost_ms, batch in order:
                now_ms += cost_ms
                num_missed += sum(items[i].slack_ms < now_ms for i in batch)
            fewest = min(fewest, num_missed)
    return fewest


def distances(num_windows: int, seed: int) -> dict[str, float]:
    """How far the plans of small windows are from the best ones."""
    chance, limits = random.Random(seed), Limits(16, 1 << 40, 1 << 40)
    above: list[float] = []
    more: list[int] = []
    for _ in range(num_windows):
        table = CostTable.linear(chance.uniform(0, 200), chance.uniform(0.1, 2), 512, 16)
        items = window(chance, SMALL, 200, chance.uniform(0.5, 3) * table.cost(100, SMALL), 2 / 3)

        def plan(objective: Objective, items: Sequence[Item] = items, table: CostTable = table) -> Plan:
            return Strategy("dp", objective).plan(items, table, limits)

        above.append(plan("mean").mean_completion_ms / best_mean_ms(items, table) - 1)
        more.append(plan("misses").num_missed(items) - fewest_missed(items, table))
    return {
        "windows": num_windows,
        "mean_objective_above_best_mean": round(statistics.mean(above), 5),
        "mean_objective_above_best_max": round(max(above), 5),
        "mean_objective_at_best_share": round(sum(a < 1e-9 for a in above) / num_windows, 3),
        "misses_above_fewest_mean": round(statistics.mean(more), 4),
        "misses_above_fewest_max": max(more),
        "misses_at_fewest_share": round(sum(m == 0 for m in more) / num_windows, 3),
    }


def main() -> None:
    options = arguments(
        __doc__.partition("\n")[0],
        [
            ("items", 10_000, "requests of the large window"),
            ("windows", 200, "small ones, searched exhaustively"),
            ("seed", 0, "of lengths and tables"),
        ],
    )
    report = Report("scripts/bench/partition.py")
    items = window(random.Random(options.seed), options.items, 500, 1e6)
    for batching, objective in WAYS:
        for max_rows in (16, 64):
            fresh, known = times_ms(batching, objective, items, max_rows)
            case = f"batching/window-{options.items}/{batching}-{objective}/{max_rows}-rows"
            report.add(case, "fresh_table", fresh, "ms", peer="goal", peer_value=GOAL_MS)
            report.add(case, "known_table", known, "ms", peer="goal", peer_value=GOAL_MS)
    for name, value in distances(options.windows, options.seed).items():
        report.add(f"batching/exhaustive-{SMALL}", name, value, "")
    report.finish(save=options.save)


if __name__ == "__main__":
    main()
