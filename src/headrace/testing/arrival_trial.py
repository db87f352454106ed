"""Arrivals at a fleet that runs: random tokens in, one token or vector out, latencies as their producer sees them.

A latency counts from the moment at which the arrival was due, not from when it was sent, so that a client that falls
behind hides nothing.
"""

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.producer.async_client import AsyncClient
from headrace.producer.async_handle import AsyncHandle
from headrace.testing.queue_simulation import Arrival

#: Share of the requests that must end within the goal.
SHARE = 0.99
_LOOK_S = 0.1
_RESULT_TTL_MS = 10_000


class Prompts:
    """Random token ids. No two prompts begin with the same one, so that an engine finds no beginning to share.

    Args:
        vocab_size: ids are below it; after so many prompts first tokens come again.
        seed: equal seeds draw equal prompts.
    """

    def __init__(self, vocab_size: int, seed: int) -> None:
        self._random = random.Random(f"prompts {seed}")
        self._vocab_size = vocab_size
        self._first_ids = self._random.sample(range(vocab_size), vocab_size)
        self._num_drawn = 0

    def draw(self, length: int) -> list[int]:
        """A prompt of so many tokens, at least one."""
        first_id = self._first_ids[self._num_drawn % self._vocab_size]
        self._num_drawn += 1
        return [first_id, *(self._random.randrange(self._vocab_size) for _ in range(length - 1))]


@dataclass(slots=True)
class ArrivalTrial:
    """One run of arrivals.

    Attributes:
        client: of the fleet.
        arrivals: the first one first.
        prompts: of which each gets one.
        goal_ms: a trial ends early, and its rest is cancelled, once too many requests are later than this.
        embeds: whether the fleet's model is an encoder.
        latencies_ms: by arrival, once ``run`` has ended; infinite for those that were cancelled.
    """

    client: AsyncClient
    arrivals: Sequence[Arrival]
    prompts: Prompts
    goal_ms: float
    embeds: bool = False
    latencies_ms: list[float] = field(init=False)
    _handles: dict[int, AsyncHandle] = field(init=False, default_factory=dict)
    _start_s: float = field(init=False, default=0.0)

    async def run(self) -> list[float]:
        """Let all arrivals come and wait for their ends, or for too many late ones; return the latencies.

        Raises:
            HeadraceError: a request failed, or the fleet went away.
        """
        self.latencies_ms = [math.inf] * len(self.arrivals)
        prompts = [self.prompts.draw(arrival.item.length) for arrival in self.arrivals]
        self._start_s = asyncio.get_running_loop().time()
        tasks = {asyncio.create_task(self._ask(i, prompt)) for i, prompt in enumerate(prompts)}
        try:
            waiting = tasks
            while waiting and not self.is_lost(self._now_ms()):
                done, waiting = await asyncio.wait(waiting, timeout=_LOOK_S)
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for handle in self._handles.values():
            await handle.cancel()
        return self.latencies_ms

    def is_lost(self, now_ms: float) -> bool:
        """Whether so many are late by now that the goal cannot be kept any more."""
        num_late = sum(
            min(latency_ms, now_ms - arrival.at_ms) > self.goal_ms
            for arrival, latency_ms in zip(self.arrivals, self.latencies_ms, strict=True)
        )
        return num_late > len(self.arrivals) - math.ceil(SHARE * len(self.arrivals))

    async def _ask(self, index: int, prompt: list[int]) -> None:
        due_ms = self.arrivals[index].at_ms
        await asyncio.sleep((due_ms - self._now_ms()) / 1000)
        wanted: dict[str, Any] = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "ignore_eos": True}
        if self.embeds:
            wanted = {"task": "embed", "input": prompt}
        handle = await self.client.submit(**wanted, ttl_ms=_RESULT_TTL_MS)
        self._handles[index] = handle
        await handle.result()
        self.latencies_ms[index] = self._now_ms() - due_ms
        del self._handles[index]

    def _now_ms(self) -> float:
        return (asyncio.get_running_loop().time() - self._start_s) * 1000
