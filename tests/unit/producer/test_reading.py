"""The reading against a model of a queue that may lose its newest state, all of it, or its connection at any moment."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config import Settings
from headrace.errors import (
    BrokerUnavailableError,
    CancelledError,
    DecodeError,
    ExpiredError,
    FailedError,
    OverloadedError,
    UnknownRequestError,
)
from headrace.producer.cutting import Cutter
from headrace.producer.reading import RESEND_AFTER_S, Look, Pause, Read, Reading, Send, Step
from headrace.producer.submission import Submission, Via, prepare
from headrace.wire import Chunk, Done, Failure, Reason, Usage

TEXTS = ["", "a", "", "éé", "word ", "", "𝄞", "b"]
IDS = tuple(range(10, 10 + len(TEXTS)))


def submission(**fields: Any) -> Submission:
    return prepare(
        Settings(queue="test"), "hello", None, fields, lane="normal", tenant="", request_id="r", encoding="mp",
        via="move", durability="memory",
    )  # fmt: skip


def reading(
    *, sent: Submission | None = None, held: int = 0, via: Via = "move", timeout_s: float = 1e9, wait_s: float = 5.0
) -> Reading:
    cutter = Cutter(held, len("".join(TEXTS[:held])))
    return Reading("r", sent, cutter, via=via, now_s=0.0, timeout_s=timeout_s, wait_s=wait_s)


@dataclass
class Queue:
    """What Redis holds of one request, and the clock."""

    known: bool = True
    chunks: list[Chunk] = field(default_factory=list)
    num_sent: int = 0
    now_s: float = 0.0

    @property
    def num_tokens(self) -> int:
        return self.chunks[-1].num_tokens_after if self.chunks else 0

    @property
    def state(self) -> str | None:
        if not self.known:
            return None
        return "done" if self.chunks and self.chunks[-1].done else "running"

    def emit(self, num_tokens: int) -> None:
        if not self.known or self.state == "done":
            return
        first = self.num_tokens
        end = min(first + num_tokens, len(IDS))
        done = Done("length", Usage(1, end)) if end == len(IDS) else None
        self.chunks.append(Chunk(first, len("".join(TEXTS[:first])), IDS[first:end], "".join(TEXTS[first:end]), done))

    def end(self, reason: Reason, error: Failure | None = None) -> None:
        done = Done(reason, Usage(1, self.num_tokens), error)
        self.chunks.append(Chunk(self.num_tokens, len("".join(TEXTS[: self.num_tokens])), (), "", done))

    def take(self, machine: Reading) -> list[Chunk]:
        """Do one step as a handle does."""
        return self.do(machine.next_step(self.now_s), machine)

    def do(self, step: Step, machine: Reading) -> list[Chunk]:
        match step:
            case Read(num_tokens, block_ms):
                found = [c for c in self.chunks if c.num_tokens_after > num_tokens or (c.i == num_tokens and not c.ids)]
                self.now_s += 0 if found else block_ms / 1000
                return machine.got(found, self.now_s)
            case Look():
                machine.saw(self.state, self.now_s)
            case Send():
                self.num_sent += 1
                self.known = True
                machine.sent()
            case Pause(seconds):
                assert seconds > 0
                self.now_s += seconds
        return []


EVENTS = st.one_of(
    st.tuples(st.just("emit"), st.integers(1, 4)),
    st.tuples(st.just("roll back"), st.integers(0, 4)),
    st.tuples(st.just("forget"), st.just(0)),
    st.tuples(st.just("go away"), st.just(0)),
    st.tuples(st.just("nothing"), st.just(0)),
)


@given(st.lists(EVENTS, max_size=25), st.sampled_from(["move", "xadd"]), st.integers(1, 4))
def test_whatever_the_broker_loses_every_token_and_character_comes_once(
    events: list[tuple[str, int]], via: Via, last_cut: int
) -> None:
    queue, machine, pieces = Queue(), reading(sent=submission(), via=via), []
    for event, number in events:
        if machine.ended:
            break
        if event == "emit":
            queue.emit(number)
        elif event == "roll back":
            queue.chunks = queue.chunks[:number]
        elif event == "forget":
            queue.known, queue.chunks = False, []
        if event == "go away":
            machine.next_step(queue.now_s)
            machine.failed(BrokerUnavailableError("away"), queue.now_s)
        else:
            pieces += queue.take(machine)
    for _ in range(200):
        if machine.ended:
            break
        queue.emit(last_cut)
        pieces += queue.take(machine)
    assert machine.ended
    assert tuple(token for piece in pieces for token in piece.ids) == IDS
    assert "".join(piece.text for piece in pieces) == "".join(TEXTS)
    assert [piece.done is not None for piece in pieces].index(True) == len(pieces) - 1


def run(queue: Queue, machine: Reading, num_steps: int = 50) -> list[Chunk]:
    pieces: list[Chunk] = []
    for _ in range(num_steps):
        pieces += queue.take(machine)
        if machine.ended:
            return pieces
    raise AssertionError("the reading does not come to an end")


def test_a_reader_that_holds_everything_is_told_of_the_end_at_once() -> None:
    queue = Queue()
    queue.emit(len(IDS))
    (piece,) = run(queue, reading(held=len(IDS)), num_steps=1)
    assert (piece.ids, piece.text) == ((), "")
    assert piece.done == Done("length", Usage(1, len(IDS)))


def test_an_end_behind_the_reader_is_found() -> None:
    queue, machine = Queue(), reading(held=5)
    queue.emit(3)
    queue.end("cancelled")
    with pytest.raises(CancelledError):
        run(queue, machine)
    assert machine.closed


def test_tokens_in_front_of_a_failure_are_handed_out_before_it_is_raised() -> None:
    queue, machine = Queue(), reading(sent=submission())
    queue.emit(2)
    queue.end("error", Failure("poison", "given up"))
    assert [piece.ids for piece in queue.take(machine)] == [IDS[:2]]
    with pytest.raises(FailedError, match="given up"):
        machine.next_step(queue.now_s)


def test_tokens_in_front_of_a_gap_are_handed_out_before_it_is_raised() -> None:
    queue, machine = Queue(), reading(sent=submission())
    queue.emit(2)
    queue.emit(2)
    queue.emit(2)
    del queue.chunks[1]
    assert [piece.ids for piece in queue.take(machine)] == [IDS[:2]]
    with pytest.raises(DecodeError, match="gap"):
        machine.next_step(queue.now_s)


def test_an_unknown_id_is_waited_for_and_then_an_error() -> None:
    queue = Queue(known=False)
    with pytest.raises(UnknownRequestError):
        run(queue, reading(wait_s=5))
    assert 5 <= queue.now_s < 5.1


def test_a_request_that_is_admitted_late_is_read() -> None:
    queue, machine = Queue(known=False), reading(wait_s=5)
    for _ in range(4):
        queue.take(machine)
    queue.known = True
    queue.emit(len(IDS))
    assert run(queue, machine)[-1].done is not None


def test_a_request_that_was_cancelled_before_it_came_is_not_waited_for() -> None:
    machine = reading()
    machine.saw("tomb", 0.0)
    with pytest.raises(CancelledError):
        machine.next_step(0.0)


def test_a_submitted_request_that_is_gone_is_sent_again_with_what_is_left_of_its_deadline() -> None:
    queue, sent = Queue(known=False), submission(deadline_ms=10_000)
    machine = reading(sent=sent)
    machine.saw(None, sent.made_s + 4)
    step = machine.next_step(queue.now_s)
    assert isinstance(step, Send)
    assert step.submission.fields["deadline_ms"] == 6_000
    machine.saw(None, sent.made_s + 11)
    with pytest.raises(ExpiredError):
        machine.next_step(queue.now_s)


@dataclass
class FullQueue(Queue):
    """Forgot the request, and has no room for it."""

    known: bool = False

    def do(self, step: Step, machine: Reading) -> list[Chunk]:
        if isinstance(step, Send):
            self.num_sent += 1
            machine.failed(OverloadedError("full"), self.now_s)
            return []
        return super().do(step, machine)


def test_a_full_queue_is_asked_again_at_growing_intervals_and_not_for_ever() -> None:
    queue = FullQueue()
    with pytest.raises(TimeoutError) as caught:
        run(queue, reading(sent=submission(), timeout_s=60), num_steps=10_000)
    assert 30 < queue.num_sent < 90
    assert isinstance(caught.value.__cause__, OverloadedError)


def test_time_is_up_when_it_is_up() -> None:
    queue, machine = Queue(), reading(sent=submission(), timeout_s=3)
    with pytest.raises(TimeoutError, match="within 3 s"):
        run(queue, machine)
    assert queue.now_s == pytest.approx(3, abs=0.01)


def test_no_time_at_all_still_takes_what_is_there() -> None:
    queue, machine = Queue(), reading(timeout_s=0)
    queue.emit(len(IDS))
    assert run(queue, machine)[-1].done is not None


def test_a_request_sent_by_xadd_is_sent_again_after_a_silence_that_doubles() -> None:
    queue, machine = Queue(known=False), reading(sent=submission(), via="xadd")
    sent_at: list[float] = []
    while len(sent_at) < 3:
        step = machine.next_step(queue.now_s)
        assert not isinstance(step, Look), "a tenant may not look"
        if isinstance(step, Read):
            queue.now_s += step.block_ms / 1000
            machine.got([], queue.now_s)
        else:
            sent_at.append(queue.now_s)
    assert sent_at == pytest.approx([RESEND_AFTER_S, 3 * RESEND_AFTER_S, 7 * RESEND_AFTER_S], abs=8)


def test_a_result_that_is_done_and_not_there_is_unknown() -> None:
    queue, machine = Queue(), reading(held=2)
    queue.emit(len(IDS))
    machine.next_step(0.0)
    for _ in range(8):
        machine.got([], 0.0)
        machine.next_step(0.0)
        machine.saw("done", 0.0)
        assert machine.next_step(0.0) == Read(0, 0)
    machine.got([], 0.0)
    with pytest.raises(UnknownRequestError):
        machine.next_step(0.0)


def test_a_request_sent_by_xadd_is_sent_again_as_soon_as_an_outage_is_over() -> None:
    machine = reading(sent=submission(), via="xadd")
    machine.failed(BrokerUnavailableError("away"), 0.0)
    assert isinstance(machine.next_step(0.0), Pause)
    assert isinstance(machine.next_step(0.1), Send)


def test_an_attached_reader_looks_at_once_what_an_outage_has_left() -> None:
    machine = reading(held=3)
    machine.failed(BrokerUnavailableError("away"), 0.0)
    assert isinstance(machine.next_step(0.0), Pause)
    assert machine.next_step(0.1) == Read(3, 0)
