"""One request as its producer holds it, for asyncio."""

import asyncio
import time
from collections.abc import AsyncIterator

from headrace.errors import BrokerUnavailableError, OverloadedError
from headrace.producer.async_line import AsyncLine
from headrace.producer.async_rounds import take_round
from headrace.producer.cutting import Cutter
from headrace.producer.held_request import HeldRequest
from headrace.producer.options import checked_seconds
from headrace.producer.outcome import Result, several_texts
from headrace.producer.reading import Look, Pause, Read, Reading, Send, Step
from headrace.wire import Chunk


class AsyncHandle(HeldRequest[AsyncLine]):
    """Reads and cancels one request; attributes, promises and errors are ``headrace.producer.handle.Handle``'s."""

    async def stream(
        self, after: int = 0, *, after_chars: int | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[Chunk]:
        """Read the result as it grows; takes, promises and raises what ``Handle.stream`` does."""
        timeout_s = checked_seconds(self._timeout_s if timeout_s is None else timeout_s)
        reading = self._reading(self.id, Cutter(after, after_chars), timeout_s, self._wait_s)
        while not reading.ended:
            step = reading.next_step(time.monotonic())
            try:
                pieces = await self._take(step, reading)
            except (BrokerUnavailableError, OverloadedError) as error:
                reading.failed(error, time.monotonic())
                continue
            if reading.closed:
                self._submission = None
            if reading.children:
                async for piece in self._follow(reading, pieces, timeout_s, num_held=after):
                    yield piece
                return
            for piece in pieces:
                yield piece

    async def text(self, *, timeout_s: float | None = None) -> AsyncIterator[str]:
        """The text in pieces, as it grows; see ``Handle.text``."""
        async for chunk in self.stream(timeout_s=timeout_s):
            if chunk.index is not None:
                raise several_texts(self.id)
            if chunk.echo is not None:
                yield chunk.echo.text
            if chunk.text:
                yield chunk.text

    async def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the end and return all of it; see ``Handle.result``."""
        return Result.of(self.id, [piece async for piece in self.stream(timeout_s=timeout_s)])

    async def cancel(self) -> str:
        """End the request; see ``Handle.cancel``."""
        return await self._line.cancel(self.id, self._stream, self._via)

    async def _follow(
        self, parent: Reading, pieces: list[Chunk], timeout_s: float, *, num_held: int
    ) -> AsyncIterator[Chunk]:
        """Read on all results of a request that has turned out to have several."""
        group = self._group(parent, timeout_s, num_held=num_held)
        group.take_parent(pieces)
        while not group.ended:
            step = group.next_round(time.monotonic())
            try:
                pieces = await take_round(self._line, step, group)
            except (BrokerUnavailableError, OverloadedError) as error:
                group.failed(error, time.monotonic())
                continue
            if group.closed:
                self._submission = None
            for piece in pieces:
                yield piece
        yield group.end()

    async def _take(self, step: Step, reading: Reading) -> list[Chunk]:
        match step:
            case Read(num_tokens, block_ms, with_head):
                broker = await self._line.broker()
                chunks = await broker.chunks_after(self.id, num_tokens, block_ms, with_head=with_head)
                return reading.got(chunks, time.monotonic())
            case Look():
                broker = await self._line.broker()
                reading.saw((await broker.request_fields(self.id)).get("state"), time.monotonic())
            case Send(submission):
                await self._line.send(submission)
                reading.sent()
            case Pause(seconds):
                await asyncio.sleep(seconds)
        return []
