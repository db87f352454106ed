"""The courier: claims batches, feeds the engine, publishes tokens, renews leases, hands rows back.

Four tasks share the rows of one outbox. None of them waits for another: tokens are gathered while a flush is under way,
a batch is claimed while rows decode, and the broker or the engine may go away and come back.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from headrace.async_broker import AsyncBroker
from headrace.config import Settings
from headrace.errors import BrokerUnavailableError, OverloadedError
from headrace.moves import Call, ClaimCall, Claimed, EmitCall
from headrace.wire import Failure, TokenLogprobs
from headrace.workers.channel import Costs, Tokens
from headrace.workers.courier.clock import ServerClock
from headrace.workers.courier.engine_link import EngineLink
from headrace.workers.courier.intake import Intake
from headrace.workers.courier.ledger import Ledger
from headrace.workers.courier.metrics import CourierLook
from headrace.workers.courier.outbox import Outbox
from headrace.workers.courier.reporter import Reporter
from headrace.workers.courier.row import Row
from headrace.workers.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

T = TypeVar("T")

#: A row that has nothing to publish still hears of its cancellation within this time.
_MAX_SILENCE_S = 0.25
_PAUSE_S = 0.1
_MAX_PAUSE_S = 1.0


class Courier:
    """One life of a worker towards Redis; ``name`` is never used again."""

    def __init__(self, broker: AsyncBroker, tokenizer: Tokenizer, settings: Settings, socket_path: str) -> None:
        host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())
        self.name = f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
        self._broker = broker
        self._tokenizer = tokenizer
        self._settings = settings
        self._socket_path = socket_path
        self._lease_s = settings.lease_ms / 1000
        self._silence_s = min(self._lease_s / 3, _MAX_SILENCE_S)
        self._outbox = Outbox(self._silence_s)
        self._clock = ServerClock()
        self._reporter = Reporter(broker)
        self._ledger = Ledger(self.name, "")
        self._asked_ms: int | None = None
        self._link: EngineLink | None = None
        self._nonce = 0
        self._suspect: Row | None = None
        self._num_published = 0
        self._num_engines = 0
        self._num_signals = 0
        # What the tasks tell each other: something to publish, something urgent, room or another reason to look again.
        self._ripe = asyncio.Event()
        self._urgent = asyncio.Event()
        self._stir = asyncio.Event()
        self._signalled = asyncio.Event()
        self._linked = asyncio.Event()
        self._heard_s = time.monotonic()

    def stop(self) -> None:
        """Drain: claim no more, let rows end for a while, hand the rest back; called twice, hand back now."""
        self._num_signals += 1
        self._signalled.set()
        self._stir.set()

    async def look(self) -> CourierLook:
        """What there is to tell of this moment; a coroutine, so that the event loop takes it."""
        ready, outbox = self._link.ready if self._link is not None else None, self._outbox
        return CourierLook(
            worker=self.name,
            worker_class=ready.worker_class if ready else "",
            has_engine=ready is not None,
            num_engines=self._num_engines,
            is_draining=self._num_signals > 0,
            num_rows=len(outbox),
            num_computing=outbox.num_computing,
            max_rows=ready.max_rows if ready else 0,
            kv_tokens_claimed=outbox.kv_tokens,
            kv_tokens=ready.kv_tokens if ready else 0,
            num_tokens=self._num_published,
            num_claimed=outbox.num_taken,
            gone=dict(outbox.gone),
        )

    async def run(self) -> None:
        """Work until ``stop``."""
        jobs = (
            self._serve_engines(),
            self._flush_for_ever(),
            self._beat_for_ever(),
            self._reporter.run(),
            self._drain(),
        )
        tasks = [asyncio.create_task(job) for job in jobs]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()

    # Engine to rows

    async def _serve_engines(self) -> None:
        """One engine after the other: what a dead one held goes back to the queue with a strike."""
        while True:
            link = await EngineLink.connect(self._socket_path)
            log.info("engine %d: %d rows, %d tokens", link.ready.pid, link.ready.max_rows, link.ready.kv_tokens)
            self._ledger = Ledger(self.name, link.ready.worker_class)
            self._link = link
            self._num_engines += 1
            self._linked.set()
            try:
                await self._serve(link)
            finally:
                link.close()
            lost = [row for row in self._outbox.rows if row.computing]
            for row in lost:
                row.hand_back("lost")
            self._announce()
            log.warning("the engine has gone; %d rows go back to the queue", len(lost))

    async def _serve(self, link: EngineLink) -> None:
        """Feed one engine and take its tokens until it has gone."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._take_in(link))
                group.create_task(self._watch(link))
                async for message in link.messages:
                    self._heard_s = time.monotonic()
                    if isinstance(message, Tokens):
                        await self._take(link, message)
                    elif isinstance(message, Costs):
                        self._reporter.tell_costs(link.ready.worker_class, message.table)
                self._link = None
                self._stir.set()
        except BaseExceptionGroup as group_error:
            # One reason is enough for the process's last words.
            raise group_error.exceptions[0] from group_error

    async def _watch(self, link: EngineLink) -> None:
        """Kill an engine that computes and says nothing for too long: a hung one would keep its rows for ever."""
        limit_s = self._settings.engine_timeout_ms / 1000
        while self._link is link:
            await asyncio.sleep(min(limit_s / 4, 1.0))
            silence_s = time.monotonic() - self._heard_s
            if self._link is link and self._outbox.num_computing and silence_s > limit_s:
                log.error("the engine has said nothing for %.0f s; killing it", silence_s)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(link.ready.pid, signal.SIGKILL)

    async def _take(self, link: EngineLink, message: Tokens) -> None:
        """Give one step's tokens to their rows."""
        self._reporter.tell_runs(self._ledger.step(message))
        stopped: list[int] = []
        logprobs = {number: TokenLogprobs(logprob, top) for number, logprob, top in message.logprobs}
        for number, token_id, finish in message.tokens:
            row = self._outbox.find(number)
            if row is None:
                continue
            if finish == "error":
                row.end("error", Failure("worker", message.error))
                continue
            row.push(token_id, logprobs.get(number))
            self._num_published += 1
            if finish:
                row.end(finish)
            elif row.ended:
                row.computing = False
                stopped.append(number)
        await link.drop(stopped + self._expire())
        self._announce()

    def _expire(self) -> list[int]:
        """End rows whose deadline is over; return the numbers of those that the engine must drop."""
        late = [row for row in self._outbox.rows if row.computing and self._clock.passed(row.deadline_ms)]
        for row in late:
            row.end("expired")
        return [row.number for row in late]

    def _announce(self) -> None:
        self._ripe.set()
        if self._outbox.urgent:
            self._urgent.set()
        if any(not row.computing for row in self._outbox.rows):
            self._stir.set()

    # Redis to engine

    async def _take_in(self, link: EngineLink) -> None:
        """Claim batches for one engine while it lives."""
        intake = Intake(self._broker, self._tokenizer, self.name, link.ready.revision)
        bell: asyncio.Task[None] | None = None
        while self._link is link and not self._num_signals:
            self._stir.clear()
            claimed = await self._claim(link)
            if claimed is not None and claimed.rows:
                await self._begin(link, intake, claimed)
                continue
            stir = asyncio.create_task(self._stir.wait())
            waits: set[asyncio.Task[object]] = {stir}
            if claimed is not None:
                if bell is None or bell.done():
                    bell = asyncio.create_task(self._hear(claimed.last_entry))
                waits.add(bell)
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            stir.cancel()
        if bell is not None:
            bell.cancel()

    async def _hear(self, last_entry: str) -> None:
        try:
            await self._broker.wait_for_batch(last_entry)
        except BrokerUnavailableError:
            await asyncio.sleep(_PAUSE_S)

    async def _claim(self, link: EngineLink) -> Claimed | None:
        """Ask for a batch; None where there is no room, or where a suspect must prove itself first."""
        ready, outbox = link.ready, self._outbox
        if self._suspect is not None and not self._suspect.proven and self._suspect in outbox.rows:
            return None
        self._suspect = None
        free_rows = ready.max_rows - outbox.num_computing
        if free_rows <= 0:
            return None
        self._nonce += 1
        return await self._move(
            ClaimCall(
                worker=self.name,
                nonce=self._nonce,
                free_rows=free_rows,
                free_tokens=ready.kv_tokens - outbox.kv_tokens,
                max_rows=ready.max_rows,
                max_tokens=ready.kv_tokens,
                num_unproven=outbox.num_unproven,
                lease_ms=self._settings.lease_ms,
                worker_class=ready.worker_class,
                patience_ms=self._settings.class_patience_ms,
            )
        )

    async def _begin(self, link: EngineLink, intake: Intake, claimed: Claimed) -> None:
        """Start the rows of a batch together, so that they share their prefill."""
        adds, void = [], []
        self._heard_s = time.monotonic()
        for claimed_row in claimed.rows:
            start = await self._persist(partial(intake.start, claimed_row), "reading what was published")
            older = self._outbox.add(start.row)
            if older is not None:
                void.append(older.number)
            if claimed.solo:
                self._suspect = start.row
            if start.add is None:
                continue
            if self._link is link:
                adds.append(start.add)
            else:
                start.row.hand_back("yield")
        self._ledger.begin(claimed.batch, [add.row for add in adds])
        await link.drop(void)
        await link.add(adds)
        self._announce()
        log.info("claimed %d", len(claimed.rows))

    # Rows to Redis

    async def _flush_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        last_flush_s = 0.0
        while True:
            await self._wait(self._ripe, self._silence_s)
            pause_s = last_flush_s + self._settings.flush_ms / 1000 - loop.time()
            if pause_s > 0 and not self._outbox.urgent:
                await self._wait(self._urgent, pause_s)
            self._ripe.clear()
            self._urgent.clear()
            if self._link is not None:
                await self._link.drop(self._expire())
            last_flush_s = loop.time()
            flush = self._outbox.next_flush(last_flush_s)
            if not flush:
                continue
            answer = await self._move(EmitCall([emit for _, emit in flush], self._settings))
            self._clock.set(answer.now_ms)
            gone = self._outbox.settle(flush, answer)
            if self._link is not None:
                await self._link.drop([row.number for row in gone if row.computing])
            if self._outbox.ripe:
                self._ripe.set()
            self._stir.set()

    async def _wait(self, event: asyncio.Event, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()

    async def _move(self, call: Call[T]) -> T:
        """Send a move until it is answered; moves are idempotent, and this one stays as it is."""
        return await self._persist(partial(self._broker.run, call), call.move)

    async def _persist(self, action: Callable[[], Awaitable[T]], what: str) -> T:
        pause_s = _PAUSE_S
        while True:
            try:
                return await action()
            except BrokerUnavailableError as error:
                log.warning("%s is tried again: %s", what, error)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _MAX_PAUSE_S)

    # Life

    async def _beat_for_ever(self) -> None:
        interval_s = min(max(self._lease_s / 3, 0.2), 3.0)
        published = 0
        while True:
            if (link := self._link) is not None:
                rate = (self._num_published - published) / interval_s
                published = self._num_published
                details: dict[str, object] = {
                    "host": socket.gethostname(),
                    "worker_pid": os.getppid(),
                    "courier_pid": os.getpid(),
                    "engine_pid": link.ready.pid,
                    "model": self._settings.queue_name,
                    "revision": link.ready.revision,
                    "class": link.ready.worker_class,
                    "max_rows": link.ready.max_rows,
                    "kv_tokens": link.ready.kv_tokens,
                    "num_rows": len(self._outbox),
                    "tokens_per_s": round(rate, 1),
                }
                with contextlib.suppress(BrokerUnavailableError):
                    life_ms = 6 * self._settings.lease_ms
                    beat = await self._broker.heartbeat(self.name, details, life_ms, link.ready.worker_class)
                    await self._hear_of_measuring(link, beat.measure_ms)
                self._reporter.tell_runs(self._ledger.sweep(self._is_computing))
            # A fleet that starts waits for the first beat: it comes as soon as there is an engine.
            await self._wait(self._linked, interval_s)
            self._linked.clear()

    async def _hear_of_measuring(self, link: EngineLink, asked_ms: int) -> None:
        """Have the engine measure again if somebody has asked for it in this courier's life."""
        if self._asked_ms is not None and asked_ms > self._asked_ms:
            log.info("asked to measure costs again")
            await link.measure()
        self._asked_ms = asked_ms

    def _is_computing(self, number: int) -> bool:
        row = self._outbox.find(number)
        return row is not None and row.computing

    async def _drain(self) -> None:
        """After ``stop``: wait for rows to end, hand back those that do not, and leave the list of workers."""
        await self._signalled.wait()
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._settings.drain_ms / 1000
        log.info("draining %d rows", len(self._outbox))
        while self._outbox.rows and loop.time() < end_s and self._num_signals == 1:
            await asyncio.sleep(0.02)
        computing = [row for row in self._outbox.rows if row.computing]
        for row in computing:
            row.hand_back("yield")
        self._announce()
        if self._link is not None:
            await self._link.drop([row.number for row in computing])
        # Without a broker nothing can be handed back; after a lease others take the rows anyway.
        end_s = loop.time() + self._lease_s
        while self._outbox.rows and loop.time() < end_s:
            await asyncio.sleep(0.01)
        log.info("handed back %d rows", len(computing))
        with contextlib.suppress(BrokerUnavailableError, OverloadedError):
            await self._reporter.flush()
        with contextlib.suppress(BrokerUnavailableError):
            await self._broker.forget_worker(self.name)
