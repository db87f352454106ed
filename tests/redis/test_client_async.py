"""What only the asynchronous client can do; all else it shares with the synchronous one, and ``test_client``."""

import asyncio

import pytest
from tests.unit.producer.stub_fleet import StubFleet, text_of

from headrace.broker import Broker
from headrace.config import Settings
from headrace.producer import AsyncClient


def test_one_client_reads_many_results_at_once(settings: Settings, broker: Broker) -> None:
    async def read_all() -> list[str]:
        async with AsyncClient(settings, timeout_s=20) as client:
            handles = [await client.submit("hello", seed=seed) for seed in range(20)]
            return [result.text for result in await asyncio.gather(*(handle.result() for handle in handles))]

    with StubFleet(broker):
        assert asyncio.run(read_all()) == [text_of(seed, 8) for seed in range(20)]


def test_the_end_of_a_task_cancels_what_it_was_generating(settings: Settings, broker: Broker) -> None:
    async def leave_early() -> None:
        async with AsyncClient(settings) as client:
            began = asyncio.Event()

            async def generate() -> None:
                async for _ in client.generate("hello", max_tokens=40):
                    began.set()

            task = asyncio.create_task(generate())
            await began.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with StubFleet(broker, until_token=4) as fleet:
        asyncio.run(leave_early())
        (request_id,) = fleet.asked
    assert broker.request_fields(request_id)["reason"] == "cancelled"
