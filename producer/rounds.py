"""One round of reading several results: what a state machine asks for is done, and it is told what came of it."""

import time
from collections.abc import Mapping
from typing import Protocol

from headrace.producer.group import Round
from headrace.producer.line import Line
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
