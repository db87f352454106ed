"""Redis to engine: claims batches while there is room, and starts their rows."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from headrace.async_broker import AsyncBroker
from headrace.config import Settings
from headrace.errors import BrokerUnavailableError
from headrace.moves import ClaimCall, Claimed
from headrace.workers.courier.desk import Desk
from headrace.workers.courier.engine_link import EngineLink
from headrace.workers.courier.held_row import HeldRow
from headrace.workers.courier.intake import TakesIn
from headrace.workers.courier.patience import PAUSE_S, persist, send
from headrace.workers.courier.watchdog import Watchdog

log = logging.getLogger(__name__)


#: From the worker's name and the revision of its engine's model.
MakeIntake = Callable[[str, str], TakesIn]


class Claimer:
    """Claims for a worker's whole life, for one engine after the other."""

    def __init__(
        self, broker: AsyncBroker, settings: Settings, desk: Desk, watchdog: Watchdog, make_intake: MakeIntake
    ) -> None:
        self._broker = broker
        self._make_intake = make_intake
        self._settings = settings
        self._desk = desk
        self._watchdog = watchdog
        self._nonce = 0
        self._suspect: HeldRow | None = None
        self._batches: list[list[HeldRow]] = []

    async def run(self, link: EngineLink) -> None:
        """Claim batches for one engine while it lives."""
        desk = self._desk
        intake = self._make_intake(desk.worker, link.ready.revision)
        bell: asyncio.Task[None] | None = None
        while desk.link is link and not desk.is_draining:
            desk.stir.clear()
            claimed = await self._claim(link)
            if claimed is not None and claimed.rows:
                await self.begin(link, intake, claimed)
                continue
            stir = asyncio.create_task(desk.stir.wait())
            waits: set[asyncio.Task[object]] = {stir}
            if claimed is not None:
                if bell is None or bell.done():
                    bell = asyncio.create_task(self._hear(claimed.last_entry))
                waits.add(bell)
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            stir.cancel()
        if bell is not None:
            bell.cancel()

    async def begin(self, link: EngineLink, intake: TakesIn, claimed: Claimed) -> None:
        """Start the rows of a batch together, so that they share their prefill."""
        desk = self._desk
        adds, void = [], []
        rows: list[HeldRow] = []
        self._watchdog.hear()
        for claimed_row in claimed.rows:
            start = await persist(partial(intake.start, claimed_row), "reading what was published")
            rows.append(start.row)
            older = desk.outbox.add(start.row)
            if older is not None:
                void.append(older.number)
            if claimed.solo:
                self._suspect = start.row
            if start.add is None:
                continue
            if desk.link is link:
                adds.append(start.add)
            else:
                start.row.hand_back("yield")
        self._batches.append(rows)
        desk.ledger.begin(claimed.batch, [add.row for add in adds])
        await link.drop(void)
        await link.add(adds)
        desk.announce()
        log.info("claimed %d", len(claimed.rows))

    async def _claim(self, link: EngineLink) -> Claimed | None:
        """Ask for a batch; None where there is no room, or where a suspect must prove itself first."""
        ready, outbox = link.ready, self._desk.outbox
        if self._suspect is not None and not self._suspect.proven and self._suspect in outbox.rows:
            return None
        self._suspect = None
        free_rows = ready.max_rows - outbox.num_computing
        self._batches = [batch for batch in self._batches if any(outbox.is_computing(row) for row in batch)]
        if free_rows <= 0 or 0 < ready.max_batches <= len(self._batches):
            return None
        self._nonce += 1
        call = ClaimCall(
            worker=self._desk.worker,
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
        return await send(self._broker, call)

    async def _hear(self, last_entry: str) -> None:
        try:
            await self._broker.wait_for_batch(last_entry)
        except BrokerUnavailableError:
            await asyncio.sleep(PAUSE_S)
