"""Tells the queue what a worker's batches cost: its table, and an entry of the log of batches each."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable

from headrace.async_broker import AsyncBroker
from headrace.batch_log import BatchRun
from headrace.errors import BrokerUnavailableError, OverloadedError

log = logging.getLogger(__name__)

_PAUSE_S = 0.5
#: A table is published again after this time although it is no news: the broker may have gone back to before it.
_REPEAT_S = 300.0
#: Entries that a broker which stays away for long makes this worker forget, the oldest first.
_MAX_ENTRIES = 256


class Reporter:
    """What one courier has to tell; it never keeps a row waiting."""

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker = broker
        self._runs: deque[BatchRun] = deque(maxlen=_MAX_ENTRIES)
        self._table: tuple[str, bytes] | None = None
        self._next_table_s = 0.0
        self._stir = asyncio.Event()

    def tell_costs(self, worker_class: str, table: bytes) -> None:
        """Publish a class's table soon."""
        self._table, self._next_table_s = (worker_class, table), 0.0
        self._stir.set()

    def tell_runs(self, runs: Iterable[BatchRun]) -> None:
        """Add batches to the log soon."""
        self._runs.extend(runs)
        if self._runs:
            self._stir.set()

    async def run(self) -> None:
        """Tell, for ever; what cannot be told now is told later."""
        while True:
            try:
                await self.flush()
            except (BrokerUnavailableError, OverloadedError) as error:
                log.debug("costs are told later: %s", error)
            await asyncio.sleep(_PAUSE_S)
            try:
                async with asyncio.timeout(_REPEAT_S):
                    await self._stir.wait()
            except TimeoutError:
                continue

    async def flush(self) -> None:
        """Tell what there is to tell.

        Raises:
            BrokerUnavailableError: there is no broker now.
            OverloadedError: its memory is full.
        """
        if self._table is not None and time.monotonic() >= self._next_table_s:
            told = self._table
            await self._broker.publish_costs(*told)
            if self._table == told:
                self._next_table_s = time.monotonic() + _REPEAT_S
        while self._runs:
            run = self._runs.popleft()
            try:
                await self._broker.log_batch(run)
            except (BrokerUnavailableError, OverloadedError):
                self._runs.appendleft(run)
                raise
        self._stir.clear()
