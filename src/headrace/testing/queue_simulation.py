"""One worker that runs a batch at a time, fed by the scheduler's own strategy and trigger, on a simulated clock.

What is real: how a window is cut, in which order its batches run, and when it is handed over. What is simulated: time,
arrivals, and a worker whose batches take exactly what the cost table says, unless a setup brings a worker of its own,
which may compute them and say what that took (``encoder_worker.py``). No process, no Redis, no text.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.workers.costs.table import CostTable
from headrace.workers.scheduler.partition import Item, Limits
from headrace.workers.scheduler.strategy import Strategy
from headrace.workers.scheduler.trigger import Patience, Waiting


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of the simulation.

    Attributes:
        at_ms: when it comes.
        item: as the strategy sees it.
    """

    at_ms: float
    item: Item


Run = Callable[[Sequence[int], float], Sequence[float]]
"""Runs a batch, given the length of each request and the price that it was cut by: when each request ends, in ms from
the batch's beginning. The last one frees the worker."""


def as_priced(lengths: Sequence[int], cost_ms: float) -> Sequence[float]:
    """A ``Run`` of which all requests end when the table says."""
    return [cost_ms] * len(lengths)


@dataclass(frozen=True, slots=True)
class Setup:
    """What is simulated.

    Attributes:
        strategy: how windows are cut.
        patience: when they are handed over; its window is the largest that is cut.
        table: what batches cost.
        limits: of a batch.
        max_backlog_batches: handed over while another batch runs; 0: a window is cut when the worker is free.
        run: what batches take.
        held_from: batches handed over from which on the last one of a window stays while rows may join it.
    """

    strategy: Strategy
    patience: Patience
    table: CostTable
    limits: Limits
    max_backlog_batches: int
    run: Run = as_priced
    held_from: float = math.inf


def poisson_arrivals(count: int, rate_per_s: float, shortest: int, longest: int, seed: int) -> list[Arrival]:
    """Requests at random moments, of lengths uniform between two; equal seeds give equal lengths at every rate."""
    lengths, gaps = random.Random(f"lengths {seed}"), random.Random(f"gaps {seed}")
    now_ms = score = 0.0
    arrivals = []
    for _ in range(count):
        now_ms += gaps.expovariate(1.0) * 1000 / rate_per_s
        length = lengths.randint(shortest, longest)
        arrivals.append(Arrival(now_ms, Item(length, length + 1, score=score)))
        score += length + 1
    return arrivals


def latencies_ms(
    setup: Setup, arrivals: Sequence[Arrival], *, goal_ms: float = math.inf, max_late: int = 0
) -> list[float]:
    """Run all requests and return, in their order, the time from each one's arrival to its end.

    Args:
        setup: of the worker and the scheduler.
        arrivals: the first one first.
        goal_ms: a run ends early once more than ``max_late`` requests took longer; what has not begun takes for ever.
        max_late: see there.
    """
    ends: list[float] = [math.inf] * len(arrivals)
    ready: list[int] = []  # in the order of their scores
    backlog: deque[tuple[list[int], float]] = deque()
    num_come, num_late, now_ms, free_ms = 0, 0, 0.0, 0.0
    wake_ms: list[float] = []
    while num_late <= max_late and (num_come < len(arrivals) or ready or backlog):
        while num_come < len(arrivals) and arrivals[num_come].at_ms <= now_ms:
            ready.append(num_come)
            num_come += 1
        while True:
            if backlog and free_ms <= now_ms:
                members, cost_ms = backlog.popleft()
                taken_ms = setup.run([arrivals[index].item.length for index in members], cost_ms)
                free_ms = now_ms + max(taken_ms)
                heapq.heappush(wake_ms, free_ms)
                for index, end_ms in zip(members, taken_ms, strict=True):
                    ends[index] = now_ms + end_ms
                    num_late += ends[index] - arrivals[index].at_ms > goal_ms
            room = max(setup.max_backlog_batches, int(free_ms <= now_ms)) - len(backlog)
            if not ready or room <= 0:
                break
            wait_ms = _hand_over(setup, arrivals, ready, backlog, room, now_ms)
            if wait_ms > 0:
                if wait_ms < math.inf:
                    heapq.heappush(wake_ms, now_ms + wait_ms)
                break
        if num_come < len(arrivals):
            heapq.heappush(wake_ms, arrivals[num_come].at_ms)
        while wake_ms and wake_ms[0] <= now_ms:
            heapq.heappop(wake_ms)
        if wake_ms:
            now_ms = wake_ms[0]
    return [end_ms - arrival.at_ms for end_ms, arrival in zip(ends, arrivals, strict=True)]


def _hand_over(
    setup: Setup,
    arrivals: Sequence[Arrival],
    ready: list[int],
    backlog: deque[tuple[list[int], float]],
    room: int,
    now_ms: float,
) -> float:
    """Cut the front of what is ready and hand over as many batches as there is room for, or say how long to wait.

    Infinite: until a batch is run.
    """
    front = ready[: setup.patience.window]
    plan = setup.strategy.plan([arrivals[index].item for index in front], setup.table, setup.limits)
    waiting = Waiting(len(ready), arrivals[front[0]].at_ms, plan.batches[0].cost_ms)
    wait_ms = setup.patience.wait_ms(waiting, now_ms)
    if wait_ms > 0:
        return wait_ms
    gone: set[int] = set()
    for batch in plan.batches[:room]:
        may_grow = batch is plan.batches[-1] and len(batch.members) < setup.limits.max_rows
        if may_grow and len(backlog) >= setup.held_from:
            break
        members = [front[index] for index in batch.members]
        backlog.append((members, batch.cost_ms))
        gone.update(members)
    ready[: len(front)] = [index for index in front if index not in gone]
    return 0.0 if gone else math.inf
