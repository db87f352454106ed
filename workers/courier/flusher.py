"""Rows to Redis: publishes tokens and renews leases, one flush in flight at a time."""

import asyncio

from headrace.async_broker import AsyncBroker
from headrace.config import Settings
from headrace.moves import EmitCall
from headrace.workers.courier.desk import Desk
from headrace.workers.courier.keeper import Keeper
from headrace.workers.courier.patience import send, wait


class Flusher:
    """Sends what is ripe at once where it is urgent, else at most every ``flush_ms``."""

    def __init__(self, broker: AsyncBroker, settings: Settings, desk: Desk, keeper: Keeper) -> None:
        self._broker = broker
        self._settings = settings
        self._desk = desk
        self._keeper = keeper

    async def run(self) -> None:
        """Flush for ever."""
        desk = self._desk
        loop = asyncio.get_running_loop()
        last_flush_s = 0.0
        while True:
            await wait(desk.ripe, desk.silence_s)
            pause_s = last_flush_s + self._settings.flush_ms / 1000 - loop.time()
            if pause_s > 0 and not desk.outbox.urgent:
                await wait(desk.urgent, pause_s)
            desk.ripe.clear()
            desk.urgent.clear()
            if desk.link is not None:
                await desk.link.drop(desk.expire())
            last_flush_s = loop.time()
            await self._flush(last_flush_s)

    async def _flush(self, now_s: float) -> None:
        desk = self._desk
        flush = desk.outbox.next_flush(now_s)
        if not flush:
            return
        answer = await send(self._broker, EmitCall([emit for _, emit in flush], self._settings))
        desk.clock.set(answer.now_ms)
        gone = desk.outbox.settle(flush, answer)
        self._keeper.keep(row for row in gone if row.request_id not in answer.refused)
        if desk.link is not None:
            await desk.link.drop([row.number for row in gone if row.computing])
        if desk.outbox.ripe:
            desk.ripe.set()
        desk.stir.set()
