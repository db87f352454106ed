"""The client for asyncio, with the same surface; a thin shell: what is decided, both clients share."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from headrace.config import Settings
from headrace.encoder_result import Answer
from headrace.errors import BrokerUnavailableError, InvalidRequestError
from headrace.keys import Lane
from headrace.producer.async_encoder_calls import AsyncEncoderCalls
from headrace.producer.async_handle import AsyncHandle
from headrace.producer.async_line import AsyncLine
from headrace.producer.async_rounds import take_all
from headrace.producer.encoder_submission import prepare_encoder
from headrace.producer.encoding import EncoderCall
from headrace.producer.options import (
    ATTACH_WAIT_S,
    SUBMIT_TIMEOUT_S,
    TIMEOUT_S,
    checked_id,
    checked_seconds,
    settings_of,
    stream_of,
)
from headrace.producer.submission import Durability, Via, not_acknowledged, prepare
from headrace.wire import Encoding


class AsyncClient(AsyncEncoderCalls):
    """Submits requests to one queue. Safe to share between the tasks of one event loop; connects at its first use.

    ::

        async with AsyncClient(url="redis://127.0.0.1:6379/0", queue="smollm2-135m") as client:
            async for piece in client.generate("Once upon a time", max_tokens=64):
                print(piece, end="", flush=True)

    Arguments, promises and errors are those of ``headrace.producer.client.Client``. A stream that is being read keeps
    a connection of its own busy: for thousands at once, give the requests one ``reply_to`` and tail that.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        url: str | None = None,
        queue: str | None = None,
        via: Via = "move",
        timeout_s: float = TIMEOUT_S,
        submit_timeout_s: float = SUBMIT_TIMEOUT_S,
    ) -> None:
        self.settings = settings_of(settings, url, queue)
        self._via: Via = via
        self._timeout_s = checked_seconds(timeout_s)
        self._line = AsyncLine(self.settings, via, checked_seconds(submit_timeout_s, "submit_timeout_s"))

    async def submit(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        lane: Lane = "normal",
        tenant: str = "",
        request_id: str | None = None,
        encoding: Encoding = "mp",
        durability: Durability = "memory",
        via: Via | None = None,
        **fields: Any,
    ) -> AsyncHandle:
        """Put a request into the queue; takes and raises what ``Client.submit`` does."""
        submission = prepare(
            self.settings,
            prompt,
            messages,
            fields,
            lane=lane,
            tenant=tenant,
            request_id=request_id,
            encoding=encoding,
            via=via or self._via,
            durability=durability,
        )
        try:
            answer = await self._line.persist(lambda: self._line.send(submission))
        except BrokerUnavailableError as error:
            raise not_acknowledged(submission.request_id, error, was_connected=self._line.was_connected) from error
        return AsyncHandle(
            self._line,
            submission.request_id,
            None if submission.belongs_to_another(answer) else submission,
            known_already=submission.belongs_to_another(answer),
            stream=submission.stream,
            via=submission.via,
            timeout_s=self._timeout_s,
            wait_s=0,
        )

    async def generate(
        self, prompt: str | Sequence[int] | None = None, *, timeout_s: float | None = None, **fields: Any
    ) -> AsyncIterator[str]:
        """Submit when the first piece is asked for, and yield the text as it grows.

        Leaving the iterator before its end (``aclose``, or the task's cancellation) cancels the request: nobody else
        knows its name. Takes what ``submit`` takes, and raises what ``submit`` and ``AsyncHandle.stream`` raise.
        """
        if fields.get("n", 1) != 1:
            raise InvalidRequestError("n: generate() yields one text; submit, and read stream() or result()", field="n")
        limit_s = checked_seconds(self._timeout_s if timeout_s is None else timeout_s)
        handle = await self.submit(prompt, **fields)
        try:
            async for piece in handle.text(timeout_s=limit_s):
                yield piece
        except (GeneratorExit, asyncio.CancelledError):
            await handle.cancel()
            raise

    async def _encode(
        self, call: EncoderCall, timeout_s: float | None, texts_per_request: int, options: dict[str, Any]
    ) -> list[Answer]:
        limit_s = checked_seconds(self._timeout_s if timeout_s is None else timeout_s)
        submissions = prepare_encoder(self.settings, call, texts_per_request, options, self._via)
        return await take_all(self._line, submissions, limit_s)

    def attach(self, request_id: str, *, wait_s: float = ATTACH_WAIT_S) -> AsyncHandle:
        """A handle of a request that somebody else submitted: sends nothing until it is used; see ``Client.attach``."""
        return AsyncHandle(
            self._line,
            checked_id(request_id),
            None,
            stream=stream_of(request_id),
            via=self._via,
            timeout_s=self._timeout_s,
            wait_s=checked_seconds(wait_s, "wait_s"),
        )

    async def cancel(self, request_id: str) -> str:
        """End a request, and return the state it was in; see ``Client.cancel``."""
        return await self.attach(request_id).cancel()

    async def close(self) -> None:
        """Close every connection."""
        await self._line.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
