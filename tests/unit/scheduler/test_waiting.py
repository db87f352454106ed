"""Waiting for company costs nobody a deadline: the dispatcher before a simulated queue and worker.

The dispatcher, its strategies and triggers are the real ones; the clock counts whole ms. A worker's batch takes what
its table says, times ``slow``.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.conftest import fast_settings

from headrace.config import Settings, Trigger
from headrace.heartbeat import WorkerInfo
from headrace.moves import DispatchCall, Dispatched, ReadyRequest, Window
from headrace.workers.costs.table import CostTable
from headrace.workers.scheduler.dispatcher import Dispatcher

FIXED_MS, TOKEN_MS = 20.0, 1.0
TABLE = CostTable.linear(FIXED_MS, TOKEN_MS, 512, 16)
STEP_MS = TABLE.cost(1, 1)


@dataclass(frozen=True)
class Ask:
    """A request, ``gap_ms`` behind the one before; ``lead`` puts it before others, as another lane would."""

    gap_ms: int
    length: int
    deadline_ms: int = 0
    new_tokens: int = 1
    lead: int = 0


@dataclass
class Queue:
    """As much of a broker as the dispatcher sees, and a worker that takes a batch as soon as it has nothing to do."""

    settings: Settings
    slow: float
    now_ms: int = 0
    ready: dict[str, ReadyRequest] = field(default_factory=dict)
    batches: list[tuple[list[ReadyRequest], float]] = field(default_factory=list)
    free_ms: float = 0.0
    ends_ms: dict[str, float] = field(default_factory=dict)
    deadlines_ms: dict[str, int] = field(default_factory=dict)

    def waiting_batches(self) -> Counter[str]:
        return Counter({"": len(self.batches)})

    def window(self, count: int, *, counts_waiting: bool) -> Window:
        front = sorted(self.ready.values(), key=lambda request: request.score)[:count]
        return Window(self.now_ms, len(self.ready), 0, 0, 0, 0, tuple(front))

    def run_all(self, calls: Sequence[DispatchCall]) -> list[Dispatched]:
        return [self._dispatch(call) for call in calls]

    def _dispatch(self, call: DispatchCall) -> Dispatched:
        for name in call.hopeless:
            del self.ready[name]
            self.ends_ms[name] = math.inf
        asked = [self.ready.pop(name) for name in call.request_ids]
        late = [request for request in asked if 0 < request.deadline_ms <= self.now_ms]
        self.ends_ms |= {request.request_id: math.inf for request in late}
        if go := [request for request in asked if request not in late]:
            self.batches.append((go, call.note.predicted_ms * self.slow))
        return Dispatched("1-0" if go else "", False, tuple(request.request_id for request in late))

    @property
    def is_idle(self) -> bool:
        return not self.ready and not self.batches and self.free_ms <= self.now_ms

    def work(self) -> None:
        while self.batches and self.free_ms <= self.now_ms:
            requests, cost_ms = self.batches.pop(0)
            self.free_ms = self.now_ms + cost_ms
            for request in requests:
                num_steps = request.cost_tokens - request.length - 1
                self.ends_ms[request.request_id] = self.free_ms + num_steps * STEP_MS


def ends_of(
    asks: Sequence[Ask], given: Settings, slow: float = 1.0, late_ms: int = 0, *, for_encoders: bool = False
) -> tuple[Queue, list[str]]:
    """When each request ends (inf: never), and who came when nothing else waited or ran and could be served in time."""
    queue, promised = Queue(given, slow), []
    dispatcher = Dispatcher(queue, given, for_encoders=for_encoders)  # type: ignore[arg-type]
    dispatcher.fit([WorkerInfo("w", 0, 16, 100_000, 0, {})], {"": TABLE.encode()})
    wake_ms = math.inf

    def step() -> None:
        nonlocal wake_ms
        dispatcher.dispatch()
        queue.work()
        pause_ms = min(dispatcher.wait_ms, 250.0) if queue.ready else math.inf
        wake_ms = queue.now_ms + max(1, math.ceil(pause_ms)) + late_ms if pause_ms < math.inf else math.inf

    for number, ask in enumerate(asks):
        came_ms = queue.now_ms + ask.gap_ms
        while (next_ms := min(wake_ms, queue.free_ms if queue.batches else math.inf)) <= came_ms:
            queue.now_ms = math.ceil(next_ms)
            queue.work()
            if queue.now_ms >= wake_ms:
                step()
        queue.now_ms = max(came_ms, queue.now_ms)
        queue.work()
        name, length = f"r{number}", ask.length
        deadline_ms = queue.now_ms + ask.deadline_ms if ask.deadline_ms else 0
        needed_ms = slow * TABLE.cost(length, 1) + (ask.new_tokens - 1) * STEP_MS
        if queue.is_idle and ask.deadline_ms >= needed_ms + 2:
            promised.append(name)
        score = float(1_000 * number - ask.lead)
        queue.ready[name] = ReadyRequest(name, length, length + ask.new_tokens, 0, 0, score, deadline_ms, queue.now_ms)
        queue.deadlines_ms[name] = deadline_ms
        step()
    while queue.ready or queue.batches:
        queue.now_ms = math.ceil(min(wake_ms, queue.free_ms if queue.batches else math.inf))
        queue.work()
        if queue.now_ms >= wake_ms:
            step()
    return queue, promised


asks_of = st.lists(
    st.builds(
        Ask,
        st.integers(0, 800),
        st.integers(1, 300),
        st.just(0) | st.integers(30, 3_000),
        st.integers(1, 6),
        st.sampled_from([0, 0, 100_000]),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=150)
@given(
    asks_of,
    st.sampled_from(["hungry", "lazy", "half_goal"]),
    st.booleans(),
    st.sampled_from([1.0, 1.5, 2.0]),
    st.integers(0, 90),
    st.integers(2, 6),
    st.booleans(),
)
@example([Ask(0, 10, 500)], "half_goal", True, 1.0, 0, 6, True)
@example([Ask(0, 10, 500)], "lazy", False, 2.0, 0, 6, True)
@example([Ask(0, 10, 1_500), Ask(500, 300, lead=100_000), Ask(1, 300, lead=100_000)], "lazy", False, 2.0, 0, 6, True)
@example([Ask(0, 10, 1_500), Ask(500, 300, lead=100_000), Ask(1, 300, lead=100_000)], "lazy", False, 2.0, 0, 2, True)
def test_who_could_be_served_in_time_when_it_came_to_an_idle_worker_is_not_made_late_by_waiting(
    asks: list[Ask], trigger: Trigger, drop_hopeless: bool, slow: float, late_ms: int, window: int, for_encoders: bool
) -> None:
    given = fast_settings(trigger=trigger, drop_hopeless=drop_hopeless, lazy_timeout_ms=2_000, latency_goal_ms=4_000,
                          window=window, max_backlog_batches=64)  # fmt: skip
    queue, promised = ends_of(asks, given, slow, late_ms, for_encoders=for_encoders)
    for name in promised:
        assert queue.ends_ms[name] <= queue.deadlines_ms[name]


@pytest.mark.parametrize("trigger", ["lazy", "half_goal"])
@pytest.mark.parametrize("drop_hopeless", [False, True])
def test_a_deadline_that_cannot_be_met_is_not_waited_for(trigger: Trigger, drop_hopeless: bool) -> None:
    given = fast_settings(trigger=trigger, drop_hopeless=drop_hopeless, lazy_timeout_ms=5_000, latency_goal_ms=9_000)
    queue, _ = ends_of([Ask(7, 300, deadline_ms=200)], given)
    assert queue.now_ms == 7, "it went, or was dropped, in the millisecond in which it came"
    assert queue.ends_ms["r0"] == (math.inf if drop_hopeless else 7 + TABLE.cost(300, 1))


def test_what_has_time_still_waits_for_company() -> None:
    given = fast_settings(trigger="lazy", lazy_timeout_ms=300)
    queue, _ = ends_of([Ask(0, 10, deadline_ms=60_000), Ask(200, 10)], given)
    assert queue.ends_ms["r0"] == queue.ends_ms["r1"] > 300


def waiting(name: str, deadline_ms: int) -> ReadyRequest:
    return ReadyRequest(name, 10, 11, 0, 0, 0.0, deadline_ms)


def test_behind_a_batch_that_waits_for_a_worker_a_deadline_does_not_wait_for_company() -> None:
    queue = Queue(fast_settings(trigger="lazy", lazy_timeout_ms=5_000), 1.0)
    dispatcher = Dispatcher(queue, queue.settings)  # type: ignore[arg-type]
    queue.ready["hurried"] = waiting("hurried", 60_000)
    assert dispatcher.dispatch() == 0
    queue.batches.append(([], 500.0))
    assert dispatcher.dispatch() == 1


def test_no_class_of_workers_that_may_be_fed_at_last_is_too_slow_for_a_deadline() -> None:
    queue = Queue(fast_settings(trigger="lazy", lazy_timeout_ms=5_000, drop_hopeless=True), 1.0)
    dispatcher = Dispatcher(queue, queue.settings)  # type: ignore[arg-type]
    tables = {"a-fast": CostTable.linear(10.0, 1.0, 512, 16), "slow": CostTable.linear(900.0, 90.0, 512, 16)}
    encoded = {name: table.encode() for name, table in tables.items()}
    workers = [WorkerInfo(name, 0, 16, 9_999, 0, {"class": name}) for name in tables]
    dispatcher.fit(workers[:1], encoded)
    queue.ready["hurried"] = waiting("hurried", 1_500)
    assert dispatcher.dispatch() == 0, "there is time, where all are fast"
    dispatcher.fit(workers, encoded)
    assert dispatcher.dispatch() == 1
