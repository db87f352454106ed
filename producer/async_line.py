"""The asynchronous line to one queue; see ``headrace.producer.line``."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from headrace.async_broker import AsyncBroker
from headrace.config import Settings
from headrace.connection import open_async_client
from headrace.errors import BrokerUnavailableError, ConfigurationError, OverloadedError
from headrace.keys import RequestStream
from headrace.moves import CancelCall, Submitted
from headrace.producer.durability import FSYNC_SETTINGS, cannot_check, check_fsync
from headrace.producer.patience import Patience
from headrace.producer.submission import Submission, Via, accepted_of

T = TypeVar("T")


class AsyncLine:
    """Sends requests and cancellations. Safe to share between the tasks of one event loop."""

    def __init__(self, settings: Settings, via: Via, patience_s: float) -> None:
        self.settings = settings
        self.via: Via = via
        self._patience_s = patience_s
        self._opening = asyncio.Lock()
        self._broker: AsyncBroker | None = None

    async def broker(self) -> AsyncBroker:
        """The broker; the first call connects, and raises what ``Line.broker`` does."""
        async with self._opening:
            if self._broker is None:
                # A tenant who may only XADD and XREAD is not permitted to ask what the server is like.
                self._broker = (
                    AsyncBroker(open_async_client(self.settings), self.settings)
                    if self.via == "xadd"
                    else await AsyncBroker.connect(self.settings)
                )
            return self._broker

    @property
    def was_connected(self) -> bool:
        """Whether a request may have been sent: a server has answered, or nobody may ask what it is like."""
        return self._broker is not None

    async def send(self, submission: Submission) -> Submitted:
        """Submit once; raises what ``Line.send`` does."""
        broker = await self.broker()
        if submission.durability == "fsync":
            await self._check_fsync(broker)
        try:
            if submission.via == "xadd":
                entry = await broker.add_request(
                    submission.stream, submission.request_id, submission.encoding, submission.body
                )
                return Submitted("ok", entry)
            return submission.accepted(await broker.run(submission.call(self.settings)))
        except OverloadedError as error:
            raise OverloadedError(str(error), request_id=submission.request_id) from error

    async def send_all(self, submissions: Sequence[Submission]) -> tuple[int, ...]:
        """Submit together; see ``Line.send_all``."""
        first = submissions[0]
        if first.durability == "fsync" or first.via == "xadd":
            await self.send(first)
            return (0,)
        calls = [submission.call(self.settings) for submission in submissions]
        return accepted_of(submissions, await (await self.broker()).run_all(calls))

    async def cancel(self, request_id: str, stream: RequestStream, via: Via) -> str:
        """Ask for a request's end; return the state that it was in, "" where ``via`` does not tell."""

        async def once() -> str:
            broker = await self.broker()
            if via == "xadd":
                await broker.add_cancellation(stream, request_id)
                return ""
            return await broker.run(CancelCall(request_id, self.settings))

        return await self.persist(once)

    async def _check_fsync(self, broker: AsyncBroker) -> None:
        try:
            found = {name: await broker.setting(name) for name in FSYNC_SETTINGS}
        except ConfigurationError as error:
            raise cannot_check(error) from error
        check_fsync(found)

    async def persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Do what may be done twice until it succeeds; see ``Line.persist``."""
        patience = Patience(time.monotonic() + self._patience_s)
        while True:
            try:
                return await attempt()
            except BrokerUnavailableError:
                if patience.left_s(time.monotonic()) == 0:
                    raise
            await asyncio.sleep(patience.pause_s(time.monotonic()))

    async def close(self) -> None:
        """Close every connection; the next use opens new ones."""
        async with self._opening:
            if self._broker is not None:
                await self._broker.close()
                self._broker = None
