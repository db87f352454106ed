"""The courier's tasks: a broker that goes in the middle of taking a batch, and an engine that shall measure again."""

import asyncio
from typing import Any, cast

from headrace.async_broker import AsyncBroker
from headrace.config import Settings
from headrace.errors import BrokerUnavailableError
from headrace.moves import Claimed, ClaimedRow
from headrace.workers.channel import Ready
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
