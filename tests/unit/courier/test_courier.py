"""The courier's tasks: a broker that goes in the middle of taking a batch, and an engine that shall measure again."""

import asyncio
from typing import Any, cast

from headrace.async_broker import AsyncBroker
from headrace.config import Settings
from headrace.errors import BrokerUnavailableError
from headrace.moves import ClaimCall, Claimed, ClaimedRow, EmitRow, Emitted
from headrace.testing.plain_params import plain_params
from headrace.workers.channel import Add, Ready
from headrace.workers.courier.claimer import Claimer
from headrace.workers.courier.desk import Desk
from headrace.workers.courier.engine_link import EngineLink
from headrace.workers.courier.intake import Start
from headrace.workers.courier.pulse import Pulse
from headrace.workers.courier.reporter import Reporter
from headrace.workers.courier.row import Row
from headrace.workers.courier.watchdog import Watchdog

CLAIMED_ROW = ClaimedRow("r", 1, 3, 3, "json", b"", 0, "")


class FlakyIntake:
    """Cannot read what was published before its third try."""

    def __init__(self) -> None:
        self.num_tries = 0

    async def start(self, claimed: ClaimedRow) -> Start:
        self.num_tries += 1
        if self.num_tries < 3:
            raise BrokerUnavailableError("away")
        return Start(Row(1, claimed, "w"), None)


class QuietLink:
    """Takes everything and says nothing."""

    ready = Ready(1, "r", 8, 800)

    async def add(self, rows: Any) -> None:
        assert not rows

    async def drop(self, numbers: Any) -> None:
        assert not numbers


def test_a_broker_that_goes_between_a_claim_and_its_reading_costs_no_row() -> None:
    # Previously the error ended the courier, and all of its rows lost their leases.
    async def run() -> int:
        desk = Desk("w", Settings())
        intake = FlakyIntake()
        watchdog = Watchdog(desk, engine_timeout_ms=1_000)
        claimer = Claimer(cast(AsyncBroker, None), Settings(), desk, watchdog, lambda *_: intake)
        claimed = Claimed("1-0", solo=False, rows=(CLAIMED_ROW,))
        await claimer.begin(cast(EngineLink, QuietLink()), intake, claimed)
        assert [row.request_id for row in desk.outbox.rows] == ["r"]
        return intake.num_tries

    assert asyncio.run(run()) == 3


class MeasuringLink(QuietLink):
    """Counts how often it is asked to measure."""

    def __init__(self) -> None:
        self.num_asked = 0

    async def measure(self) -> None:
        self.num_asked += 1


def test_an_engine_measures_again_once_for_every_time_somebody_asks_in_the_couriers_life() -> None:
    async def run() -> list[int]:
        broker = cast(AsyncBroker, None)
        pulse = Pulse(broker, Settings(), Desk("w", Settings()), Reporter(broker))
        link, counts = MeasuringLink(), []
        # The first answer is about the time before: a worker that starts again does not measure again.
        for asked_ms in (1_000, 1_000, 2_000, 2_000, 2_000, 3_000):
            await pulse.hear_of_measuring(cast(EngineLink, link), asked_ms)
            counts.append(link.num_asked)
        return counts

    assert asyncio.run(run()) == [0, 0, 1, 1, 1, 2]


class Answering:
    """A broker that answers every claim with a batch of one row, and counts them."""

    def __init__(self) -> None:
        self.num_claims = 0

    async def run(self, call: ClaimCall) -> Claimed:
        self.num_claims += 1
        row = ClaimedRow(f"r{self.num_claims}", 1, 0, 0, "json", b"", 0, "")
        return Claimed("1-0", solo=False, rows=(row,), batch=f"{self.num_claims}-0")


class Numbering:
    """Makes a row of each claim."""

    def __init__(self) -> None:
        self._number = 0

    async def start(self, claimed: ClaimedRow) -> Start:
        self._number += 1
        return Start(Row(self._number, claimed, "w"), Add(self._number, (1,), (), plain_params()))


class TwoBatches(QuietLink):
    """Takes two batches at a time."""

    ready = Ready(1, "r", 8, 800, max_batches=2)

    async def add(self, rows: Any) -> None:
        assert len(rows) == 1


def test_an_engine_that_takes_two_batches_is_given_the_next_when_all_rows_of_one_are_gone() -> None:
    async def run() -> list[int]:
        desk, broker, link, counts = Desk("w", Settings()), Answering(), TwoBatches(), []
        desk.link = cast(EngineLink, link)
        watchdog = Watchdog(desk, engine_timeout_ms=1_000)
        claimer = Claimer(cast(AsyncBroker, broker), Settings(), desk, watchdog, lambda *_: Numbering())
        claiming = asyncio.create_task(claimer.run(cast(EngineLink, link)))

        async def settle() -> None:
            for _ in range(20):
                await asyncio.sleep(0)
            counts.append(broker.num_claims)

        await settle()
        # One is answered; another is taken away by the server, which nobody tells the row.
        first, second = desk.outbox.rows
        first.end("stop")
        desk.announce()
        await settle()
        desk.outbox.settle(
            [(second, EmitRow("r2", "", "", "", "renew", 0, "json", "", b""))], Emitted(0, frozenset({"r2"}))
        )
        desk.stir.set()
        await settle()
        desk.is_draining = True
        desk.stir.set()
        await claiming
        return counts

    assert asyncio.run(run()) == [2, 3, 4]
