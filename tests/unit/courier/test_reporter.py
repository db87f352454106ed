"""What a worker has to tell of its costs reaches the queue, however often the broker goes."""

import asyncio
from typing import cast

import pytest

from headrace.async_broker import AsyncBroker
from headrace.batch_log import BatchRun
from headrace.errors import BrokerUnavailableError, OverloadedError
from headrace.workers.courier.reporter import Reporter


class FlakyBroker:
    """Takes what it is told every third time."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.told: list[object] = []

    async def publish_costs(self, worker_class: str, table: bytes) -> None:
        self._take((worker_class, table))

    async def log_batch(self, ran: BatchRun) -> None:
        self._take(ran)

    def _take(self, what: object) -> None:
        self.num_calls += 1
        if self.num_calls % 3:
            raise (BrokerUnavailableError, OverloadedError)[self.num_calls % 2]("away")
        self.told.append(what)


def run(batch: int) -> BatchRun:
    return BatchRun(f"{batch}-0", "gpu", "w", 1, 1, 1.0)


def test_nothing_is_told_twice_and_nothing_is_lost_while_the_broker_comes_and_goes() -> None:
    async def tell() -> list[object]:
        broker = FlakyBroker()
        reporter = Reporter(cast(AsyncBroker, broker))
        reporter.tell_costs("gpu", b"old")
        reporter.tell_costs("gpu", b"table")
        reporter.tell_runs([run(1), run(2)])
        for _ in range(8):
            with pytest.raises((BrokerUnavailableError, OverloadedError)):
                await reporter.flush()
            if len(broker.told) == 2:
                break
        reporter.tell_runs([run(3)])
        while len(broker.told) < 4:
            try:
                await reporter.flush()
            except (BrokerUnavailableError, OverloadedError):
                continue
        await reporter.flush()
        return broker.told

    assert asyncio.run(tell()) == [("gpu", b"table"), run(1), run(2), run(3)]


def test_a_broker_that_stays_away_makes_a_worker_forget_the_oldest_batches_only() -> None:
    async def tell() -> list[object]:
        broker = FlakyBroker()
        reporter = Reporter(cast(AsyncBroker, broker))
        reporter.tell_runs(run(batch) for batch in range(1000))
        while len(broker.told) < 256:
            try:
                await reporter.flush()
            except (BrokerUnavailableError, OverloadedError):
                continue
        await reporter.flush()
        return broker.told

    assert asyncio.run(tell()) == [run(batch) for batch in range(744, 1000)]
