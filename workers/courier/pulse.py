"""A worker's heartbeats, and what it hears back."""

import asyncio
import contextlib
import logging
import os
import socket

from headrace.async_broker import AsyncBroker
from headrace.config import Settings
from headrace.errors import BrokerUnavailableError
from headrace.workers.courier.desk import Desk
from headrace.workers.courier.engine_link import EngineLink
from headrace.workers.courier.patience import wait
from headrace.workers.courier.reporter import Reporter

log = logging.getLogger(__name__)


class Pulse:
    """Beats while there is an engine: a worker without one is none."""

    def __init__(self, broker: AsyncBroker, settings: Settings, desk: Desk, reporter: Reporter) -> None:
        self._broker = broker
        self._settings = settings
        self._desk = desk
        self._reporter = reporter
        self._asked_ms: int | None = None
        self._soon = asyncio.Event()

    def hurry(self) -> None:
        """Beat at once. A fleet that starts waits for the first beat: it comes as soon as there is an engine."""
        self._soon.set()

    async def run(self) -> None:
        """Beat for ever."""
        desk, settings = self._desk, self._settings
        interval_s = min(max(settings.lease_ms / 3_000, 0.2), 3.0)
        published = 0
        while True:
            if (link := desk.link) is not None:
                rate = (desk.num_published - published) / interval_s
                published = desk.num_published
                with contextlib.suppress(BrokerUnavailableError):
                    details, life_ms = self._details(link, rate), 6 * settings.lease_ms
                    beat = await self._broker.heartbeat(desk.worker, details, life_ms, link.ready.worker_class)
                    await self.hear_of_measuring(link, beat.measure_ms)
                self._reporter.tell_runs(desk.ledger.sweep(self._is_computing))
            await wait(self._soon, interval_s)
            self._soon.clear()

    async def hear_of_measuring(self, link: EngineLink, asked_ms: int) -> None:
        """Have the engine measure again if somebody has asked for it in this courier's life."""
        if self._asked_ms is not None and asked_ms > self._asked_ms:
            log.info("asked to measure costs again")
            await link.measure()
        self._asked_ms = asked_ms

    def _details(self, link: EngineLink, tokens_per_s: float) -> dict[str, object]:
        return {
            "host": socket.gethostname(),
            "worker_pid": os.getppid(),
            "courier_pid": os.getpid(),
            "engine_pid": link.ready.pid,
            "model": self._settings.queue_name,
            "revision": link.ready.revision,
            "class": link.ready.worker_class,
            "max_rows": link.ready.max_rows,
            "kv_tokens": link.ready.kv_tokens,
            "num_rows": len(self._desk.outbox),
            "tokens_per_s": round(tokens_per_s, 1),
        }

    def _is_computing(self, number: int) -> bool:
        row = self._desk.outbox.find(number)
        return row is not None and row.computing
