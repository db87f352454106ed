"""The courier: one life of a worker towards Redis, from its first engine until it has drained.

Its tasks share a desk: claim, take tokens, flush, keep answers, beat. None of them waits for another: tokens are
gathered while a flush is under way, a batch is claimed while rows decode, and the broker or the engine may go away and
come back.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import socket

from headrace.async_broker import AsyncBroker
from headrace.config import Settings
from headrace.errors import BrokerUnavailableError, OverloadedError
from headrace.workers.courier.claimer import Claimer, MakeIntake
from headrace.workers.courier.desk import Desk
from headrace.workers.courier.engine_link import EngineLink
from headrace.workers.courier.flusher import Flusher
from headrace.workers.courier.keeper import Keeper
from headrace.workers.courier.ledger import Ledger
from headrace.workers.courier.metrics import CourierLook
from headrace.workers.courier.pulse import Pulse
from headrace.workers.courier.reporter import Reporter
from headrace.workers.courier.taker import Taker
from headrace.workers.courier.watchdog import Watchdog

log = logging.getLogger(__name__)


class Courier:
    """One life of a worker towards Redis; ``name`` is never used again."""

    def __init__(self, broker: AsyncBroker, make_intake: MakeIntake, settings: Settings, socket_path: str) -> None:
        host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())
        self.name = f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
        self._broker = broker
        self._settings = settings
        self._socket_path = socket_path
        self._desk = Desk(self.name, settings)
        self._reporter = Reporter(broker)
        self._watchdog = Watchdog(self._desk, settings.engine_timeout_ms)
        self._claimer = Claimer(broker, settings, self._desk, self._watchdog, make_intake)
        self._taker = Taker(self._desk, self._reporter, self._watchdog)
        self._keeper = Keeper(broker, settings)
        self._flusher = Flusher(broker, settings, self._desk, self._keeper)
        self._pulse = Pulse(broker, settings, self._desk, self._reporter)
        self._num_engines = 0
        self._num_signals = 0
        self._signalled = asyncio.Event()

    def stop(self) -> None:
        """Drain: claim no more, let rows end for a while, hand the rest back; called twice, hand back now."""
        self._num_signals += 1
        self._signalled.set()
        self._desk.is_draining = True
        self._desk.stir.set()

    async def look(self) -> CourierLook:
        """What there is to tell of this moment; a coroutine, so that the event loop takes it."""
        desk, outbox = self._desk, self._desk.outbox
        ready = desk.link.ready if desk.link is not None else None
        return CourierLook(
            worker=self.name,
            worker_class=ready.worker_class if ready else "",
            has_engine=ready is not None,
            num_engines=self._num_engines,
            is_draining=desk.is_draining,
            num_rows=len(outbox),
            num_computing=outbox.num_computing,
            max_rows=ready.max_rows if ready else 0,
            kv_tokens_claimed=outbox.kv_tokens,
            kv_tokens=ready.kv_tokens if ready else 0,
            num_tokens=desk.num_published,
            num_claimed=outbox.num_taken,
            gone=dict(outbox.gone),
        )

    async def run(self) -> None:
        """Work until ``stop``."""
        jobs = (self._serve_engines(), self._flusher.run(), self._keeper.run(), self._pulse.run(), self._reporter.run(),
                self._drain())  # fmt: skip
        tasks = [asyncio.create_task(job) for job in jobs]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()

    async def _serve_engines(self) -> None:
        """One engine after the other: what a dead one held goes back to the queue with a strike."""
        desk = self._desk
        while True:
            link = await EngineLink.connect(self._socket_path)
            log.info("engine %d: %d rows, %d tokens", link.ready.pid, link.ready.max_rows, link.ready.kv_tokens)
            desk.ledger = Ledger(self.name, link.ready.worker_class)
            desk.link = link
            self._num_engines += 1
            self._pulse.hurry()
            try:
                await self._serve(link)
            finally:
                link.close()
            lost = [row for row in desk.outbox.rows if row.computing]
            for row in lost:
                row.hand_back("lost")
            desk.announce()
            log.warning("the engine has gone; %d rows go back to the queue", len(lost))

    async def _serve(self, link: EngineLink) -> None:
        """Feed one engine and take its tokens until it has gone."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._claimer.run(link))
                group.create_task(self._watchdog.run(link))
                await self._taker.run(link)
                self._desk.link = None
                self._desk.stir.set()
        except BaseExceptionGroup as group_error:
            # One reason is enough for the process's last words.
            raise group_error.exceptions[0] from group_error

    async def _drain(self) -> None:
        """After ``stop``: wait for rows to end, hand back those that do not, and leave the list of workers."""
        await self._signalled.wait()
        desk, loop = self._desk, asyncio.get_running_loop()
        end_s = loop.time() + self._settings.drain_ms / 1000
        log.info("draining %d rows", len(desk.outbox))
        while desk.outbox.rows and loop.time() < end_s and self._num_signals == 1:
            await asyncio.sleep(0.02)
        computing = [row for row in desk.outbox.rows if row.computing]
        for row in computing:
            row.hand_back("yield")
        desk.announce()
        if desk.link is not None:
            await desk.link.drop([row.number for row in computing])
        # Without a broker nothing can be handed back; after a lease others take the rows anyway.
        end_s = loop.time() + self._settings.lease_ms / 1000
        while desk.outbox.rows and loop.time() < end_s:
            await asyncio.sleep(0.01)
        log.info("handed back %d rows", len(computing))
        with contextlib.suppress(BrokerUnavailableError, OverloadedError):
            await self._reporter.flush()
        with contextlib.suppress(BrokerUnavailableError):
            await self._broker.forget_worker(self.name)
