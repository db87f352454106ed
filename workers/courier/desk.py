"""What the courier's tasks share: the rows, the engine, and what they tell each other. No I/O."""

import asyncio

from headrace.config import Settings
from headrace.workers.courier.clock import ServerClock
from headrace.workers.courier.engine_link import EngineLink
from headrace.workers.courier.ledger import Ledger
from headrace.workers.courier.outbox import Outbox

#: A row that has nothing to publish still hears of its cancellation within this time.
_MAX_SILENCE_S = 0.25


class Desk:
    """One worker's rows and its engine, for several tasks of one event loop.

    Attributes:
        worker: its name.
        silence_s: how long a row may stay without a word to the server.
        outbox: the rows.
        clock: the server's.
        ledger: batches whose prompts the engine computes.
        link: to the engine; None while there is none.
        is_draining: nothing more is claimed.
        num_published: tokens that came from engines so far.
        ripe: there is something to publish.
        urgent: there is something to publish that does not wait for the next regular flush.
        stir: there is room, or another reason to look for a batch again.
    """

    def __init__(self, worker: str, settings: Settings) -> None:
        self.worker = worker
        self.silence_s = min(settings.lease_ms / 3_000, _MAX_SILENCE_S)
        self.outbox = Outbox(self.silence_s)
        self.clock = ServerClock()
        self.ledger = Ledger(worker, "")
        self.link: EngineLink | None = None
        self.is_draining = False
        self.num_published = 0
        self.ripe = asyncio.Event()
        self.urgent = asyncio.Event()
        self.stir = asyncio.Event()

    def expire(self) -> list[int]:
        """End rows whose deadline is over; return the numbers of those that the engine must drop."""
        late = [row for row in self.outbox.rows if row.computing and self.clock.passed(row.deadline_ms)]
        for row in late:
            row.end("expired")
        return [row.number for row in late]

    def announce(self) -> None:
        """Tell the other tasks that rows have changed."""
        self.ripe.set()
        if self.outbox.urgent:
            self.urgent.set()
        if any(not row.computing for row in self.outbox.rows):
            self.stir.set()
