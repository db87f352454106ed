"""What the queue costs an encoder: short embeddings through Redis, against its engine alone on the very same batches.

Texts go in rounds: each round's are embedded through a fleet, by ``Client.embed`` and timed from the call to the last
vector; then the batches that the scheduler made of them are looked up, and the same engine computes them again in this
process, from token ids, while the fleet is idle. So whatever else the machine does hits both. The goal is 90 % of the
engine's own rate.

Of several ``--workers`` each engine has ``--threads``; the engine alone has as many as all of them together. As many
engines as workers, each in a process of its own and with a worker's threads, also share the batches: what the cores
can do at most where nothing holds an engine up.
"""

import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console

from headrace.broker import Broker
from headrace.config import Settings
from headrace.encoder_job import EncoderJob, EncoderParams, pack_ids
from headrace.producer import Client
from headrace.testing.fleet import Fleet, wait_until
from headrace.testing.rows import Report, arguments
from headrace.testing.servers import Server
from headrace.workers.channel import Encode, EncodeRow
from headrace.workers.encoder.assembly import load_for
from headrace.workers.encoder.engine import EncoderEngine
from headrace.workers.encoder.process import make_engine
from headrace.workers.encoder.runner import EncoderRunner
from headrace.workers.garbage import look_seldom
from headrace.workers.model_store.store import ModelFolder, default_cache_dir, pull
from headrace.workers.text.encoder_tokenizer import EncoderTokenizer
from headrace.workers.worker import ENCODER_ON_CPU, spare_cores

MODEL = "all-minilm-l6-v2"
GOAL = 0.9
WORDS = (
    "sea",
    "boat",
    "calm",
    "wind",
    "harbour",
    "a",
    "the",
    "of",
    "old",
    "map",
    "bread",
    "river",
    "two",
    "blue",
    "far",
)


def short_texts(count: int) -> list[str]:
    """Of 2 to 12 words."""
    dice = random.Random(0)
    return [" ".join(dice.choices(WORDS, k=dice.randint(2, 12))) for _ in range(count)]


def batches_of(broker: Broker, names: Sequence[str], jobs: Sequence[bytes]) -> list[Encode]:
    """The requests' jobs as the scheduler put them into batches, in the order in which these were cut."""
    by_batch: defaultdict[str, list[EncodeRow]] = defaultdict(list)
    pipe = broker.client.pipeline(transaction=False)
    for name in names:
        pipe.hget(broker.keys.request(name), "batch")
    for number, (batch, job) in enumerate(zip(pipe.execute(), jobs, strict=True)):
        by_batch[batch.decode()].append(EncodeRow(number, job))
    order = sorted(by_batch, key=lambda entry: [int(part) for part in entry.split("-")])
    return [Encode(tuple(by_batch[entry])) for entry in order]


def jobs_of(tokenizer: EncoderTokenizer, texts: Sequence[str], texts_per_request: int) -> list[bytes]:
    """What the scheduler makes of the requests of one call."""
    jobs = []
    for begin in range(0, len(texts), texts_per_request):
        ids = [list(text.ids) for text in tokenizer.encode_batch(texts[begin : begin + texts_per_request])]
        lengths = tuple(map(len, ids))
        jobs.append(EncoderJob("embed", lengths, lengths, pack_ids(ids), EncoderParams(), "r").encode())
    return jobs


def compute(engine: EncoderEngine, batches: Sequence[Encode]) -> float:
    """Seconds that the engine takes for batches."""
    begin_s = time.perf_counter()
    for batch in batches:
        engine.add(batch)
        while engine.has_rows:
            engine.step()
    return time.perf_counter() - begin_s


class SideBySide:
    """Engines in processes of their own, which take every so manieth batch each."""

    def __init__(self, folder: ModelFolder, count: int, num_threads: int) -> None:
        spawn = get_context("spawn")
        self._pools = [ProcessPoolExecutor(1, spawn) for _ in range(count)]
        self._engine = (folder, num_threads)
        self.compute([])

    def compute(self, batches: Sequence[Encode]) -> float:
        """Seconds from the first engine's begin to the last one's end."""
        count = len(self._pools)
        shares = [
            pool.submit(_compute_share, *self._engine, batches[which::count]) for which, pool in enumerate(self._pools)
        ]
        spans = [share.result() for share in shares]
        return max(end_s for _, end_s in spans) - min(begin_s for begin_s, _ in spans)

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools:
            pool.shutdown()


def _compute_share(folder: ModelFolder, num_threads: int, batches: Sequence[Encode]) -> tuple[float, float]:
    """When a process began and ended, by the machine's monotonic clock."""
    engine = engine_of(folder, num_threads)
    begin_s = time.perf_counter()
    return begin_s, begin_s + compute(engine, batches)


@cache
def engine_of(folder: ModelFolder, num_threads: int) -> EncoderEngine:
    """The engine as the worker's process has it, one a process."""
    torch.set_num_threads(num_threads)
    loaded = load_for(folder.path, torch.device("cpu"), "float32")
    step_tokens = ENCODER_ON_CPU.step_tokens
    engine = make_engine(loaded, EncoderRunner(loaded, batch_tokens=step_tokens), step_tokens)
    look_seldom()  # as the engine's own process does
    return engine


def cpu_s(pids: Sequence[int]) -> float:
    """What processes have computed so far, in seconds."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def have_costs(fleet: Fleet) -> bool:
    """Whether every worker has its costs: nothing is measured any more beside what is timed."""
    log = fleet.log
    return log.count("costs measured") + log.count("costs read") >= fleet.settings.workers


def main() -> None:
    options = arguments(
        __doc__.partition("\n")[0],
        [
            ("texts", 100_000, "in all"),
            ("round", 5_000, "texts that go through the fleet before the engine alone computes them"),
            ("per-request", 64, "texts of one request"),
            ("workers", 1, "of the fleet"),
            ("threads", 0, "of each engine's products; 0: as a worker's where nothing is set"),
        ],
    )
    workers, threads = options.workers, options.threads or spare_cores(options.workers)
    report = Report("scripts/bench/embed_redis.py")
    folder = pull(MODEL, default_cache_dir(), Console(stderr=True))
    tokenizer, texts = EncoderTokenizer.from_folder(folder.path), short_texts(options.texts)
    engine = engine_of(folder, workers * threads)
    side_by_side = SideBySide(folder, workers, threads) if workers > 1 else None
    ratios, redis_s, engine_s, engines_s, num_batches = [], 0.0, 0.0, 0.0, 0
    spent_s: Counter[str] = Counter()
    with Server("valkey") as server:
        settings = Settings.load(redis_url=server.url, model=MODEL, num_threads=threads, workers=workers)
        with Fleet(settings) as fleet, Client(settings) as client:
            wait_until(lambda: have_costs(fleet), 60, "measured costs")
            client.embed(texts[:2_000], texts_per_request=options.per_request)  # as warm as the rounds find it
            pids = {"client": [os.getpid()], "server": [server.pid], "engine": fleet.pids("engine")}
            pids |= {"scheduler": fleet.pids("scheduler"), "courier": fleet.pids("courier")}
            for number, begin in enumerate(range(0, len(texts), options.round)):
                part = texts[begin : begin + options.round]
                before_s = {name: cpu_s(each) for name, each in pids.items()}
                began_s = time.perf_counter()
                found = client.embed(part, texts_per_request=options.per_request, request_id=f"b{number}")
                took_s = time.perf_counter() - began_s
                spent_s.update({name: cpu_s(each) - before_s[name] for name, each in pids.items()})
                assert np.abs(np.linalg.norm(found.numpy(), axis=1) - 1).max() < 1e-4
                jobs = jobs_of(tokenizer, part, options.per_request)
                names = [f"b{number}.{k}" for k in range(len(jobs))] if len(jobs) > 1 else [f"b{number}"]
                batches = batches_of(fleet.broker, names, jobs)
                alone_s = compute(engine, batches)
                engines_s += side_by_side.compute(batches) if side_by_side else 0.0
                ratios.append(alone_s / took_s)
                redis_s, engine_s, num_batches = redis_s + took_s, engine_s + alone_s, num_batches + len(batches)
    case = f"encoder/embed-redis-{options.texts}x{options.per_request}-threads{threads}"
    case += f"-workers{workers}" if workers > 1 else ""
    items_per_s = len(texts) / redis_s
    report.add(case, "through_redis", items_per_s, "items/s", peer="engine alone", peer_value=len(texts) / engine_s)
    if side_by_side:
        side_by_side.close()
        report.add(
            case, "through_redis_of_engines", items_per_s, "items/s", peer=f"{workers} engines alone, side by side",
            peer_value=len(texts) / engines_s,
        )  # fmt: skip
    report.add(case, "round_ratio_median", median(ratios), "of the engine alone", peer="goal", peer_value=GOAL)
    report.add(case, "texts_per_batch", len(texts) / num_batches, "texts")
    for name, seconds in spent_s.items():
        report.add(case, f"{name}_cpu", 1e6 * seconds / len(texts), "us/text")
    report.finish(save=options.save)


if __name__ == "__main__":
    main()
