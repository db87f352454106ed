"""Which part of the time that batches keep an engine is its own, and what follows for what batches cost."""

from collections import deque
from collections.abc import Sequence
from typing import cast

import pytest

from headrace.encoder_job import EncoderJob, EncoderParams, pack_ids
from headrace.testing.stub_encoder import WIDTH, StubEncoder
from headrace.workers.channel import Encode, Encoded, EncodeRow, Message
from headrace.workers.costs.table import CostTable
from headrace.workers.encoder import process
from headrace.workers.encoder.engine import EncoderEngine
from headrace.workers.encoder.findings import Findings
from headrace.workers.encoder.items import EncoderItem, Result
from headrace.workers.encoder.scratch import EncoderScratch
from headrace.workers.encoder.turns import StepTime, Turn, TurnClock
from headrace.workers.engine.cost_keeper import CostKeeper
from headrace.workers.engine.link import CourierLink
from headrace.workers.engine.measurement import Extent


class Machine:
    """Two clocks, that of everybody and that of the engine."""

    def __init__(self) -> None:
        self.now_ms = self.own_ms = 0.0
        self.clock = TurnClock(lambda: self.own_ms / 1000, lambda: self.now_ms / 1000)

    def others_work(self, ms: float) -> None:
        self.now_ms += ms

    def step(self, own_ms: float, taken_ms: float = 0.0) -> StepTime:
        """The engine computes; meanwhile others take the core from it for a while."""
        self.clock.begin()
        self.now_ms += own_ms + taken_ms
        self.own_ms += own_ms
        took = self.clock.end()
        return StepTime(round(took.step_ms, 6), round(took.own_ms, 6))

    def end_batch(self) -> Turn | None:
        turn = self.clock.end_batch()
        return turn and Turn(round(turn.own_ms, 6), round(turn.turn_ms, 6))


def test_a_turn_is_all_that_passes_from_one_batch_s_end_to_the_next_one_s() -> None:
    machine = Machine()
    assert machine.step(20, taken_ms=3) == StepTime(23, 20)
    assert machine.end_batch() is None, "nobody knows how long it had waited"
    machine.others_work(4)
    machine.step(30, taken_ms=2)
    machine.others_work(1)
    machine.step(10)
    assert machine.end_batch() == Turn(own_ms=40, turn_ms=47)
    machine.step(5)
    assert machine.end_batch() == Turn(own_ms=5, turn_ms=5)


def test_time_without_work_is_no_turn() -> None:
    machine = Machine()
    machine.step(20)
    machine.end_batch()
    machine.clock.rest()
    machine.others_work(500)
    machine.step(20)
    assert machine.end_batch() is None
    machine.step(20)
    assert machine.end_batch() == Turn(20, 20)


def test_what_others_take_of_a_step_is_not_the_engine_s_own_and_a_clock_s_error_makes_nothing_negative() -> None:
    machine = Machine()
    assert machine.step(5, taken_ms=100) == StepTime(105, 5)
    # A thread's clock may be coarser, and ahead.
    assert machine.step(5, taken_ms=-1) == StepTime(4, 4)


class SlowEncoder(StubEncoder):
    """A step takes 3 ms and 0.1 ms a token of the machine's time."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine

    def compute(self, items: Sequence[EncoderItem]) -> list[Result]:
        taken_ms = 3 + 0.1 * sum(len(item.token_ids) for item in items)
        self._machine.now_ms += taken_ms
        self._machine.own_ms += taken_ms
        return super().compute(items)


class BusyLink:
    """Stands for a ``CourierLink``: a batch is at hand whenever asked for, and each takes others 7 ms."""

    def __init__(self, machine: Machine, num_texts: Sequence[int]) -> None:
        self._machine = machine
        self._batches = deque(num_texts)
        self.costs: list[CostTable] = []

    def receive(self, timeout_s: float) -> list[Message]:
        assert not timeout_s, "the engine would wait, though there is something to do"
        job = EncoderJob("embed", (10,), (10,), pack_ids([list(range(10))]), EncoderParams(), "r1").encode()
        return [Encode(tuple(EncodeRow(number, job) for number in range(self._batches.popleft())))]

    def send(self, message: Message) -> None:
        if isinstance(message, Encoded):
            self._machine.others_work(7)


def slow_engine(machine: Machine) -> tuple[EncoderEngine, CostKeeper]:
    runner = SlowEncoder(machine)
    engine = EncoderEngine(runner, Findings(WIDTH, normalises=False), step_tokens=100)
    costs = CostKeeper(
        Extent(64, 128, 4096), lambda: EncoderScratch(runner, 97, 100), worker_class="c", budget_ms=0, file=None,
        clock_s=lambda: machine.now_ms / 1000,
    )  # fmt: skip
    return engine, costs


def test_an_engine_that_never_rests_learns_what_batches_cost_beside_it_and_what_they_cost_itself() -> None:
    machine = Machine()
    engine, costs = slow_engine(machine)
    # Some take several steps.
    link = BusyLink(machine, [1 + index % 30 for index in range(500)])
    for _ in range(1_000):
        if not link._batches:
            break
        process._turn(cast(CourierLink, link), engine, costs, lambda: False, machine.clock)
    assert costs.batch_ms == pytest.approx(7.0, abs=1.0)
    told = CostTable.decode(costs.table)
    assert told.packed_cost(80) == pytest.approx(3 + 8 + costs.batch_ms, rel=0.1)


class IdleLink:
    """Stands for a ``CourierLink`` over which nothing comes."""

    def __init__(self) -> None:
        self.waits_s: list[float] = []

    def receive(self, timeout_s: float) -> list[Message]:
        self.waits_s.append(timeout_s)
        return []

    def send(self, message: Message) -> None:
        raise AssertionError(f"nothing has happened that {message} could tell of")


def test_an_engine_without_texts_prepares_for_them_and_waits_when_nothing_is_left_to_prepare() -> None:
    machine = Machine()
    engine, costs = slow_engine(machine)
    costs.news()
    link, left = IdleLink(), [True, True, False]
    for _ in range(3):
        process._turn(cast(CourierLink, link), engine, costs, lambda: left.pop(0), machine.clock)
    assert (left, [wait_s > 0 for wait_s in link.waits_s]) == ([], [False, False, False, True])
