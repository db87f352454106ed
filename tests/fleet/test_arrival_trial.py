"""What benchmarks believe of a fleet: every arrival is timed, and a lost trial ends early and leaves nothing."""

import asyncio
import time
from collections.abc import Sequence

from tests.waiting import until

from headrace.producer.async_client import AsyncClient
from headrace.testing.arrival_trial import ArrivalTrial, Prompts
from headrace.testing.fleet import Fleet
from headrace.testing.queue_simulation import Arrival, poisson_arrivals
from headrace.workers.scheduler.partition import Item


def run(fleet: Fleet, arrivals: Sequence[Arrival], goal_ms: float) -> list[float]:
    async def trial() -> list[float]:
        async with AsyncClient(fleet.settings) as client:
            return await ArrivalTrial(client, arrivals, Prompts(40_000, seed=1), goal_ms).run()

    return asyncio.run(trial())


def test_every_arrival_has_a_latency_from_the_moment_it_was_due(fleet: Fleet) -> None:
    begin_s = time.monotonic()
    taken = run(fleet, poisson_arrivals(12, 20.0, 2, 20, seed=1), goal_ms=60_000)
    assert len(taken) == 12
    assert all(0 < latency_ms < (time.monotonic() - begin_s) * 1000 for latency_ms in taken)


def test_a_trial_ends_when_its_goal_is_lost_and_cancels_what_it_asked_for(fleet: Fleet) -> None:
    begin_s = time.monotonic()
    now, later = (Arrival(at_ms, Item(8, 9)) for at_ms in (0.0, 300_000.0))
    taken = run(fleet, [now] * 4 + [later], goal_ms=0.5)
    assert time.monotonic() - begin_s < 30
    assert taken[-1] == float("inf")
    until(lambda: not any(fleet.broker.load()[name] for name in ("queued", "running")))


def test_no_two_prompts_begin_alike() -> None:
    prompts = Prompts(1_000, seed=2)
    drawn = [prompts.draw(length) for length in [1, 30] * 500]
    assert len({prompt[0] for prompt in drawn}) == 1_000
    assert [len(prompt) for prompt in drawn] == [1, 30] * 500
    assert all(0 <= token_id < 1_000 for prompt in drawn for token_id in prompt)
