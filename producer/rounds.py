"""Reading several results: what a state machine asks for is done, and it is told what came of it."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from headrace.encoder_result import Answer
from headrace.errors import BrokerUnavailableError, OverloadedError
from headrace.producer.group import Round
from headrace.producer.line import Line
from headrace.producer.parts import Parts
from headrace.producer.submission import Submission
from headrace.wire import Chunk


class Rounds(Protocol):
    """What is told: ``Group``, or ``Bundle``."""

    def saw(self, request_id: str, state: str | None, now_s: float) -> None:
        """Take a request's state."""
        ...

    def sent(self) -> None:
        """Take that a submission went in."""
        ...

    def got(self, asked: Round, chunks: Mapping[str, list[Chunk]], now_s: float) -> list[Chunk]:
        """Take what was read; return what is new."""
        ...


def take_round(line: Line, step: Round, rounds: Rounds) -> list[Chunk]:
    """Pause, send, look and read, in this order; return what is new.

    Raises:
        BrokerUnavailableError: no server answers; report it with ``failed``.
        OverloadedError: a submission was refused; the same.
    """
    if step.pause_s:
        time.sleep(step.pause_s)
    for submission in step.sends:
        line.send(submission)
        rounds.sent()
    broker = line.broker()
    for name in step.looks:
        rounds.saw(name, broker.request_fields(name).get("state"), time.monotonic())
    if not step.reads:
        return []
    return rounds.got(step, broker.chunks_of(step.reads, step.block_ms), time.monotonic())


def take_all(line: Line, submissions: Sequence[Submission], timeout_s: float) -> list[Answer]:
    """Send requests to an encoder and wait for their answers; those that are left when one fails are cancelled.

    Raises:
        RequestError: what became of the first one that failed.
        TimeoutError: time is up.
        BrokerUnavailableError: no server took a request within the line's patience.
    """
    parts = Parts(submissions, time.monotonic() + timeout_s)
    try:
        return drive(line, parts)
    except BaseException:
        with contextlib.suppress(BrokerUnavailableError, OverloadedError):
            for name in parts.bundle.names:
                line.cancel(name, submissions[0].stream, submissions[0].via)
        raise


def drive(line: Line, parts: Parts) -> list[Answer]:
    """Send requests and wait for their answers; raises what ``take_all`` does, and cancels nothing."""
    while not parts.ended:
        if sends := parts.next_sends(time.monotonic()):
            _send(line, parts, sends)
            continue
        step = parts.bundle.next_round(time.monotonic())
        try:
            pieces = take_round(line, step, parts.bundle)
        except (BrokerUnavailableError, OverloadedError) as error:
            parts.bundle.failed(error, time.monotonic())
            continue
        parts.take(pieces)
    return parts.answers


def _send(line: Line, parts: Parts, sends: Sequence[Submission]) -> None:
    try:
        places = line.persist(lambda: line.send_all(sends))
    except OverloadedError as error:
        parts.refused(error)
    else:
        parts.went(places, time.monotonic())
