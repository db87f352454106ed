"""Rows to the response cache: answers that may be given again are kept, as far as there is a broker with room."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable

from headrace.async_broker import AsyncBroker
from headrace.config import Settings
from headrace.errors import BrokerUnavailableError, OverloadedError
from headrace.moves import RememberCall
from headrace.workers.courier.held_row import HeldRow

log = logging.getLogger(__name__)

#: Answers that wait to be kept; where the broker cannot follow, the oldest are given up.
_MAX_WAITING = 256


class Keeper:
    """What one courier keeps; it never keeps a row waiting, and what is not kept is computed again."""

    def __init__(self, broker: AsyncBroker, settings: Settings) -> None:
        self._broker = broker
        self._settings = settings
        self._waiting: deque[RememberCall] = deque(maxlen=_MAX_WAITING)
        self._stir = asyncio.Event()

    def keep(self, rows: Iterable[HeldRow]) -> None:
        """Keep the answers of rows whose end the server has taken, soon."""
        if not self._settings.cache_entries:
            return
        for row in rows:
            chunk = row.whole() if row.cache_key else None
            if chunk is not None and chunk.done is not None:
                data = chunk.encode(row.encoding)
                self._waiting.append(
                    RememberCall(
                        row.cache_key, chunk.num_tokens_after, len(chunk.text), chunk.done.reason, data, self._settings
                    )
                )
        if self._waiting:
            self._stir.set()

    async def run(self) -> None:
        """Keep, for ever."""
        while True:
            await self._stir.wait()
            self._stir.clear()
            while self._waiting:
                try:
                    await self._broker.run(self._waiting.popleft())
                except (BrokerUnavailableError, OverloadedError) as error:
                    log.debug("an answer is not kept: %s", error)
