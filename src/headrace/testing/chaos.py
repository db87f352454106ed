"""Kills parts of a fleet while it streams, and compares every text with that of an undisturbed run."""

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headrace.testing.collector import Collector, ContractBrokenError, outcomes
from headrace.testing.fleet import Fleet, Part

_UNDISTURBED_TIMEOUT_S = 180.0
_BATCH_TIMEOUT_S = 300.0
#: A batch with fewer running requests than this is read to its end, and the next one begins.
_FEW_RUNNING = 6


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill.

    Attributes:
        part: what was killed.
        silence_s: from the kill to the next token of the request whose token had set it off.
    """

    part: Part
    silence_s: float


def prompts(count: int, num_tokens: int) -> list[dict[str, object]]:
    """Requests, every second greedy and the others sampled with a seed, that run for exactly ``num_tokens``."""
    subjects = ("the sea", "a clock", "two rivers", "an old map", "bread", "the first snow", "a bridge", "honey")
    return [
        {
            "prompt": f"{i}. A short story about {subjects[i % len(subjects)]}, told in the year {1900 + i}:",
            "max_tokens": num_tokens,
            "ignore_eos": True,
            **({"temperature": 0} if i % 2 else {"temperature": 0.8, "top_p": 0.95, "seed": i}),
        }
        for i in range(count)
    ]


def submit(fleet: Fleet, name: str, requests: Sequence[dict[str, object]]) -> list[str]:
    """Put requests into the queue with plain XADD; return their ids."""
    ids = [f"{name}-{i}" for i in range(len(requests))]
    pipe = fleet.broker.client.pipeline(transaction=False)
    for request_id, fields in zip(ids, requests, strict=True):
        pipe.xadd(fleet.broker.keys.prefix + "requests", {"json": json.dumps({"id": request_id, **fields})})
    pipe.execute()
    return ids


def kill_while_streaming(
    fleet: Fleet, parts: Sequence[Part], requests: Sequence[dict[str, object]], seed: int = 0
) -> Iterator[Kill]:
    """Kill the parts one after the other, each right after a streamed token, and yield what each kill did.

    Raises:
        ContractBrokenError: a token was lost or repeated, a text differs from the undisturbed one, a request was given
            up, or the totals do not return to zero.
    """
    chance = random.Random(seed)
    ids = submit(fleet, "undisturbed", requests)
    undisturbed = Collector(fleet.broker, ids)
    undisturbed.wait(_UNDISTURBED_TIMEOUT_S)
    expected = outcomes(undisturbed, ids)
    waiting, batch = list(parts), 0
    while waiting:
        ids = submit(fleet, f"batch{batch}", requests)
        collector = Collector(fleet.broker, ids)
        while waiting:
            fleet.wait_ready()
            victim = _next_token(collector, chance)
            if victim is None:
                break
            part = waiting.pop(0)
            fleet.kill_part(part)
            yield Kill(part, _silence_s(collector, victim))
        collector.wait(_BATCH_TIMEOUT_S)
        for name, found, wanted in zip(ids, outcomes(collector, ids), expected, strict=True):
            if found != wanted:
                done = collector.transcripts[name].done
                raise ContractBrokenError(f"{name}: {found} is not the undisturbed {wanted}; it ended with {done}")
        batch += 1
    load = fleet.broker.load()
    if any(load.values()):
        raise ContractBrokenError(f"the totals did not return to zero: {load}")


def _next_token(collector: Collector, chance: random.Random) -> str | None:
    """Wait for a token of a random running request that has some way to go; None if too few run."""
    end_s = time.monotonic() + _BATCH_TIMEOUT_S
    while not collector.finished and time.monotonic() < end_s:
        came = [name for name in collector.poll(block_ms=500) if name in collector.running]
        if collector.transcripts and len(collector.running) < _FEW_RUNNING and _begun(collector):
            return None
        if came:
            return chance.choice(came)
    return None


def _begun(collector: Collector) -> bool:
    return all(transcript.ids for transcript in collector.transcripts.values())


def _silence_s(collector: Collector, name: str) -> float:
    transcript = collector.transcripts[name]
    num_tokens, start_s = len(transcript.ids), time.monotonic()
    while len(transcript.ids) == num_tokens and transcript.done is None:
        collector.poll(block_ms=100)
        if time.monotonic() - start_s > _BATCH_TIMEOUT_S:
            raise ContractBrokenError(f"{name} fell silent at token {num_tokens}")
    return transcript.arrivals_s[-1] - start_s
