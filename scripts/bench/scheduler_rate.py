"""How many requests a second one scheduler process takes from streams to batches: checked, tokenised, cut, handed over.

50,000 requests of 32 tokens (texts, SmolLM2's own tokenizer) wait in the stream of a private Valkey; then a scheduler
process starts, and another that stands for a large worker: it takes each batch out of its stream, and does nothing
more. The rate is that from the scheduler's first command to the last batch. Run it on two free cores: ``nice -n -18
python scripts/bench/scheduler_rate.py``.
"""

import cProfile
import json
import multiprocessing
import os
import pstats
import random
import signal
import sys
import time
from pathlib import Path

from rich.console import Console

from headrace.broker import Broker
from headrace.config import Settings
from headrace.moves import HeartbeatCall
from headrace.testing.rows import Report, arguments
from headrace.testing.servers import Server
from headrace.workers.model_store.store import default_cache_dir, pull
from headrace.workers.scheduler.admission import Admitter
from headrace.workers.scheduler.process import Scheduler
from headrace.workers.text.tokenizer import Tokenizer

MODEL = "smollm2-135m"
PROMPT_TOKENS = 32
GOAL_PER_S = 5_000


def texts(tokenizer: Tokenizer, count: int) -> list[str]:
    """Different texts of exactly ``PROMPT_TOKENS`` tokens."""
    chance = random.Random(5)
    words = [
        " the",
        " a",
        " river",
        " old",
        " of",
        " in",
        " stone",
        " light",
        " seven",
        " and",
        " house",
        " to",
        " sea",
    ]
    found: list[str] = []
    while len(found) < count:
        drafts = ["Once" + "".join(chance.choices(words, k=PROMPT_TOKENS - 1)) for _ in range(2_000)]
        encoded = tokenizer.encode_batch(drafts, add_special_tokens=True)
        found += [text for text, ids in zip(drafts, encoded, strict=True) if len(ids) == PROMPT_TOKENS]
    return found[:count]


def fill(broker: Broker, prompts: list[str]) -> None:
    """Put every text into the stream, as any program may."""
    stream = broker.keys.prefix + "requests"
    for begin in range(0, len(prompts), 2_000):
        pipe = broker.client.pipeline(transaction=False)
        for i, prompt in enumerate(prompts[begin : begin + 2_000], begin):
            pipe.xadd(stream, {"id": f"r{i}", "json": json.dumps({"prompt": prompt, "max_tokens": 16, "seed": i})})
        pipe.execute()


def take_batches(settings: Settings, count: int, done: "multiprocessing.Queue[tuple[float, int]]") -> None:
    """Take batches out of their stream until all requests came; tell when that was, and how many batches there were."""
    broker = Broker.connect(settings)
    num_requests = num_batches = 0
    while num_requests < count:
        reply = broker.client.xread({broker.keys.batches: "0-0"}, count=256, block=200)
        for _, entries in reply or ():
            num_requests += sum(len(fields[b"ids"].split()) for _, fields in entries)
            num_batches += len(entries)
            broker.client.xdel(broker.keys.batches, *(entry for entry, _ in entries))
    done.put((time.monotonic(), num_batches))
    broker.close()


def schedule(settings: Settings, started: "multiprocessing.Queue[float]", profile: bool) -> None:
    """One scheduler, until SIGTERM."""
    folder = pull(settings.model, default_cache_dir(), Console(stderr=True))
    admitter = Admitter(Tokenizer.from_folder(folder.path), folder.revision, settings)
    broker = Broker.connect(settings)
    broker.adopt_contract()
    scheduler = Scheduler(broker, admitter, settings)
    signal.signal(signal.SIGTERM, lambda *_: scheduler.stop())
    started.put(time.monotonic())
    if not profile:
        scheduler.run()
        return
    with cProfile.Profile() as profiler:
        scheduler.run()
    pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(35)


def _cpu_s(pid: int | None) -> float:
    """What a process has computed so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    options = arguments(
        __doc__.partition("\n")[0],
        [
            ("requests", 50_000, "in the stream at the start"),
            ("window", 1_024, "setting of the scheduler"),
            ("backlog", 256, "batches that may wait"),
            ("profile", 0, "1: print where the scheduler's time goes"),
        ],
    )
    report = Report("scripts/bench/scheduler_rate.py")
    folder = pull(MODEL, default_cache_dir(), Console(stderr=True))
    context = multiprocessing.get_context("spawn")
    with Server("valkey") as server:
        settings = Settings(
            redis_url=server.url, model=MODEL, window=options.window, max_backlog_batches=options.backlog
        )
        broker = Broker.connect(settings)
        fill(broker, texts(Tokenizer.from_folder(folder.path), options.requests))
        started, done = context.Queue(), context.Queue()
        # As large as no batch is: while nobody lives, requests leave one by one.
        large = json.dumps({"num_rows": 0, "max_rows": 1 << 20, "kv_tokens": 1 << 30})
        broker.run(HeartbeatCall("worker", "w1", large, 600_000, ""))
        taker = context.Process(target=take_batches, args=(settings, options.requests, done))
        taker.start()
        time.sleep(2)
        scheduler = context.Process(target=schedule, args=(settings, started, bool(options.profile)))
        scheduler.start()
        began_s, filled_s, imported_s = started.get(), _cpu_s(server.pid), _cpu_s(scheduler.pid)
        ended_s, num_batches = done.get()
        taken_s = ended_s - began_s
        scheduler_us = 1e6 * (_cpu_s(scheduler.pid) - imported_s) / options.requests
        server_us = 1e6 * (_cpu_s(server.pid) - filled_s) / options.requests
        assert scheduler.pid is not None
        os.kill(scheduler.pid, signal.SIGTERM)
        scheduler.join()
        taker.join()
        assert broker.load()["queued"] == options.requests
        rate = options.requests / taken_s
        report.add("batching/scheduler-rate", "dispatched", rate, "requests/s", peer="goal", peer_value=GOAL_PER_S)
        report.add("batching/scheduler-rate", "batches", num_batches / taken_s, "batches/s")
        report.add("batching/scheduler-rate", "scheduler_cpu", scheduler_us, "us/request")
        report.add("batching/scheduler-rate", "server_cpu", server_us, "us/request")
        broker.close()
    report.finish(save=options.save)


if __name__ == "__main__":
    main()
