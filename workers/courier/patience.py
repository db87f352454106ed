"""How the courier's tasks wait: for an event, and for a broker that is away."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from headrace.async_broker import AsyncBroker
from headrace.errors import BrokerUnavailableError
from headrace.moves import Call

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Between two tries; each pause is twice as long as the one before.
PAUSE_S = 0.1
_MAX_PAUSE_S = 1.0


async def wait(event: asyncio.Event, timeout_s: float) -> None:
    """Sleep until the event is set, but not for longer than ``timeout_s``."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


async def send(broker: AsyncBroker, call: Call[T]) -> T:
    """Send a move until it is answered; moves are idempotent, and this one stays as it is."""
    return await persist(partial(broker.run, call), call.move)


async def persist(action: Callable[[], Awaitable[T]], what: str) -> T:
    """Do something until there is a broker for it; ``what`` is its name in the log."""
    pause_s = PAUSE_S
    while True:
        try:
            return await action()
        except BrokerUnavailableError as error:
            log.warning("%s is tried again: %s", what, error)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _MAX_PAUSE_S)
