"""One request as its producer holds it, for asyncio."""

import asyncio
import time
from collections.abc import AsyncIterator

from headrace.errors import BrokerUnavailableError, OverloadedError
from headrace.keys import RequestStream
from headrace.producer.async_line import AsyncLine
from headrace.producer.cutting import Cutter
from headrace.producer.outcome import Result
from headrace.producer.reading import Look, Pause, Read, Reading, Send, Step
from headrace.producer.submission import Submission, Via
from headrace.wire import Chunk


class AsyncHandle:
    """Reads and cancels one request. Any number of handles may read one result, from any token on, at any time.

    A handle that made the submission sends it again if the broker comes back without it, until its end has been seen.

    Attributes:
        id: the request's name; ``AsyncClient.attach`` makes another handle of it, in any process.
    """

    def __init__(
        self,
        line: AsyncLine,
        request_id: str,
        submission: Submission | None,
        *,
        stream: RequestStream,
        via: Via,
        timeout_s: float,
        wait_s: float,
    ) -> None:
        self.id = request_id
        self._line = line
        self._submission = submission
        self._stream = stream
        self._via: Via = via
        self._timeout_s = timeout_s
        self._wait_s = wait_s

    async def stream(
        self, after: int = 0, *, after_chars: int | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[Chunk]:
        """Read the result as it grows, each token and each character once; the last chunk has ``done``.

        A server that goes away is waited for. Chunks need not be cut as the worker cut them.

        Args:
            after: tokens that the caller holds already.
            after_chars: Unicode code points of the text that it holds. Needed only where ``after`` may lie inside a
                chunk, as it may once the server has come back from an older state.
            timeout_s: seconds for the whole result, default the client's. A server that falls silent without closing
                its connections is noticed after up to 40 s, which may come on top.

        Raises:
            TimeoutError: the result has not ended in time.
            CancelledError: the request was cancelled.
            ExpiredError: its deadline passed.
            InvalidRequestError: the fleet refused it; ``field`` names the culprit.
            OverloadedError: the fleet refused it because its backlog is over the limit.
            FailedError: the fleet gave it up; ``code`` says why.
            UnknownRequestError: there is no such request (any more).
            DecodeError: the result has a gap, or changed after it was read.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        reading = Reading(
            self.id,
            self._submission,
            Cutter(after, after_chars),
            via=self._via,
            now_s=time.monotonic(),
            timeout_s=timeout_s,
            wait_s=self._wait_s,
        )
        while not reading.ended:
            step = reading.next_step(time.monotonic())
            try:
                pieces = await self._take(step, reading)
            except (BrokerUnavailableError, OverloadedError) as error:
                reading.failed(error, time.monotonic())
                continue
            if reading.closed:
                self._submission = None
            for piece in pieces:
                yield piece

    async def text(self, *, timeout_s: float | None = None) -> AsyncIterator[str]:
        """The result's text in pieces, as it grows; raises what ``stream`` raises."""
        async for chunk in self.stream(timeout_s=timeout_s):
            if chunk.text:
                yield chunk.text

    async def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the end and return all of it; raises what ``stream`` raises."""
        return Result.of(self.id, [piece async for piece in self.stream(timeout_s=timeout_s)])

    async def cancel(self) -> str:
        """End the request; return the state it was in (``done`` if too late), "" if it was sent by XADD.

        Raises:
            BrokerUnavailableError: no server answers; the request may have been cancelled.
        """
        return await self._line.cancel(self.id, self._stream, self._via)

    async def _take(self, step: Step, reading: Reading) -> list[Chunk]:
        match step:
            case Read(num_tokens, block_ms):
                broker = await self._line.broker()
                chunks = await broker.chunks_after(self.id, num_tokens, block_ms)
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
