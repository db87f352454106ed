"""Ten thousand requests from eight producers at once: none lost, none doubled, and everything back where it began.

The real model reads 4 tokens and writes 1. Every answer is compared with the greedy token of its prompt, which is
asked for once before. Afterwards, when results have expired, keys, the broker's memory and the processes' memory are
compared with their state after the warm-up.
"""

import multiprocessing
import random
import subprocess
import sys
import time

from headrace.config import Settings
from headrace.producer import Client
from headrace.testing.fleet import Fleet, Part, wait_until
from headrace.testing.rows import Report, arguments
from headrace.testing.servers import Server

NUM_PRODUCERS = 8
NUM_PROMPTS = 50
#: So many that the engine's prefix cache has filled its pages once, as it is meant to: a page of theirs each.
WARM_UP = 3_200
TTL_MS = 20_000
#: Requests that one producer has open at once.
DEPTH = 64


def make_prompts() -> list[list[int]]:
    chance = random.Random(3)
    return [[chance.randrange(1_000, 40_000) for _ in range(4)] for _ in range(NUM_PROMPTS)]


def ask(
    settings: Settings, producer: int, count: int, expected: list[int], failures: "multiprocessing.Queue[str]"
) -> None:
    """One producer: submit, keep a few open, check every answer."""
    prompts = make_prompts()
    with Client(settings, timeout_s=600) as client:
        open_handles = []
        for i in range(count):
            which = (producer * 7 + i) % NUM_PROMPTS
            request_id = f"p{producer}-{i}"
            handle = client.submit(
                prompts[which], request_id=request_id, max_tokens=1, temperature=0, ignore_eos=True, ttl_ms=TTL_MS
            )
            open_handles.append((handle, which))
            if len(open_handles) == DEPTH or i == count - 1:
                for done, index in open_handles:
                    ids = done.result().ids
                    if ids != (expected[index],):
                        failures.put(f"{done.id}: {ids} is not {expected[index]}")
                open_handles.clear()


def resident_kib(pid: int) -> int:
    line = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(line.stdout)


def main() -> None:
    options = arguments(str(__doc__), [("requests", 10_000, "requests")])
    with Server("valkey") as server:
        settings = Settings.load(redis_url=server.url, max_context_tokens=2_048, result_ttl_ms=TTL_MS)
        with Fleet(settings) as fleet, Client(settings, timeout_s=600) as client:
            prompts = make_prompts()
            expected = [
                client.submit(prompt, max_tokens=1, temperature=0, ignore_eos=True, ttl_ms=TTL_MS).result().ids[0]
                for prompt in prompts
            ]
            run_producers(settings, WARM_UP, expected)
            broker = fleet.broker

            def is_idle() -> bool:
                left = (
                    key for what in ("request", "out") for key in broker.client.scan_iter(f"*:{what}:*", count=1_000)
                )
                return not any(broker.load().values()) and next(left, None) is None

            wait_until(is_idle, 120, "results to expire")
            keys_before, memory_before = broker.client.dbsize(), int(broker.client.info("memory")["used_memory"])
            parts: tuple[Part, ...] = ("scheduler", "courier", "engine")
            resident_before = {part: resident_kib(fleet.pids(part)[0]) for part in parts}
            start_s = time.perf_counter()
            failures = run_producers(settings, options.requests, expected)
            took_s = time.perf_counter() - start_s
            wait_until(is_idle, 180, "results to expire")
            resident_after = {part: resident_kib(fleet.pids(part)[0]) for part in parts}
            keys_after, memory_after = broker.client.dbsize(), int(broker.client.info("memory")["used_memory"])
    report = Report("scripts/bench/soak.py")
    case = f"soak/{options.requests}"
    report.add(case, "wrong_or_lost", len(failures), "requests")
    report.add(case, "requests_per_s", options.requests / took_s, "1/s")
    report.add(case, "keys_after", keys_after, "keys", peer="before", peer_value=keys_before)
    report.add(case, "broker_memory_after", memory_after, "bytes", peer="before", peer_value=memory_before)
    for part in parts:
        report.add(case, f"{part}_resident_after", resident_after[part], "KiB", peer="before",
                   peer_value=resident_before[part])  # fmt: skip
    report.finish(save=options.save)
    if failures:
        sys.exit("\n".join(failures[:20]))


def run_producers(settings: Settings, total: int, expected: list[int]) -> list[str]:
    """Let all producers ask; return what went wrong."""
    context = multiprocessing.get_context("spawn")
    failures: multiprocessing.Queue[str] = context.Queue()
    count = total // NUM_PRODUCERS
    producers = [
        context.Process(target=ask, args=(settings, number, count, expected, failures))
        for number in range(NUM_PRODUCERS)
    ]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
    crashed = [f"producer {i} ended with {p.exitcode}" for i, p in enumerate(producers) if p.exitcode]
    found = []
    while not failures.empty():
        found.append(failures.get())
    return crashed + found


if __name__ == "__main__":
    main()
