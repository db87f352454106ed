"""Reading several results, for asyncio; see ``headrace.producer.rounds``."""

import asyncio
import contextlib
import time
from collections.abc import Sequence

from headrace.encoder_result import Answer
from headrace.errors import BrokerUnavailableError, OverloadedError
from headrace.producer.async_line import AsyncLine
from headrace.producer.group import Round
from headrace.producer.parts import Parts
from headrace.producer.rounds import Rounds
from headrace.producer.submission import Submission
from headrace.wire import Chunk


async def take_round(line: AsyncLine, step: Round, rounds: Rounds) -> list[Chunk]:
    """Pause, send, look and read, in this order; raises what ``headrace.producer.rounds.take_round`` does."""
    if step.pause_s:
        await asyncio.sleep(step.pause_s)
    for submission in step.sends:
        await line.send(submission)
        rounds.sent()
    broker = await line.broker()
    for name in step.looks:
        rounds.saw(name, (await broker.request_fields(name)).get("state"), time.monotonic())
    if not step.reads:
        return []
    return rounds.got(step, await broker.chunks_of(step.reads, step.block_ms), time.monotonic())


async def take_all(line: AsyncLine, submissions: Sequence[Submission], timeout_s: float) -> list[Answer]:
    """Send requests to an encoder and wait for their answers; see ``headrace.producer.rounds.take_all``."""
    parts = Parts(submissions, time.monotonic() + timeout_s)
    try:
        while not parts.ended:
            if sends := parts.next_sends(time.monotonic()):
                await _send(line, parts, sends)
                continue
            step = parts.bundle.next_round(time.monotonic())
            try:
                pieces = await take_round(line, step, parts.bundle)
            except (BrokerUnavailableError, OverloadedError) as error:
                parts.bundle.failed(error, time.monotonic())
                continue
            parts.take(pieces)
    except BaseException:
        with contextlib.suppress(BrokerUnavailableError, OverloadedError):
            for name in parts.bundle.names:
                await line.cancel(name, submissions[0].stream, submissions[0].via)
        raise
    return parts.answers


async def _send(line: AsyncLine, parts: Parts, sends: Sequence[Submission]) -> None:
    try:
        places = await line.persist(lambda: line.send_all(sends))
    except OverloadedError as error:
        parts.refused(error)
    else:
        parts.went(places, time.monotonic())
