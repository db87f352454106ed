"""The engine on two cores: one request through the whole fleet, many at once, a step beside the model, prefixes.

SmolLM2-135M, fp32. Prompts and outputs are uniform between 8 and 128 tokens, seed 0; a request's useful tokens are
those that it asked for. The peer is transformers on the same weights in the same run, warm, sdpa attention, two
threads, static batches padded on the left, whose rows all run as long as the longest of them. Best of three rounds
each way, in turn; each round has prompts of its own, so that the prefix cache finds nothing.
"""

import functools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM

from headrace.config import Settings
from headrace.job import SamplingParams
from headrace.kernels.planned import PlannedOperations
from headrace.kernels.ragged import Ragged
from headrace.kernels.reference import ReferenceOperations
from headrace.producer import Client
from headrace.testing.fleet import Fleet
from headrace.testing.rows import Report, arguments
from headrace.testing.servers import Server
from headrace.workers.channel import Add
from headrace.workers.engine.assembly import host_engine
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.loading import load
from headrace.workers.model_store.store import default_cache_dir, resolve

NUM_THREADS = 2
VOCAB = (100, 40_000)
KV_TOKENS, STEP_TOKENS, MAX_ROWS = 16_384, 512, 32


@dataclass(frozen=True)
class Case:
    prompt: tuple[int, ...]
    num_tokens: int


def cases(num_requests: int, *, seed: int) -> list[Case]:
    """Draw requests: always the same lengths, and the seed's own prompts."""
    lengths, tokens = random.Random(0), random.Random(seed)
    drawn = [(lengths.randint(8, 128), lengths.randint(8, 128)) for _ in range(num_requests)]
    return [Case(tuple(tokens.randrange(*VOCAB) for _ in range(prompt)), output) for prompt, output in drawn]


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(num_tokens, 0, 0.0, 0, 1.0, 0.0, 0, (), (), ignore_eos=True)


def generate(model: LlamaForCausalLM, batch: Sequence[Case]) -> None:
    """Run one static batch."""
    longest = max(len(case.prompt) for case in batch)
    padding = [longest - len(case.prompt) for case in batch]
    ids = [[0] * pad + list(case.prompt) for pad, case in zip(padding, batch, strict=True)]
    mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
    num_tokens = max(case.num_tokens for case in batch)
    model.generate(
        torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )


def through_fleet(client: Client, batch: Sequence[Case]) -> None:
    """Submit requests at once and wait for all of them."""
    handles = [client.submit(case.prompt, max_tokens=case.num_tokens, temperature=0, ignore_eos=True) for case in batch]
    for handle, case in zip(handles, batch, strict=True):
        if handle.result().usage.completion_tokens != case.num_tokens:
            raise SystemExit(f"{handle} has another number of tokens than {case.num_tokens}")


def best_rates(rounds: Sequence[Sequence[Sequence[Case]]], *ways: Callable[[Sequence[Case]], None]) -> list[float]:
    """Useful tokens a second of each way, the best of several rounds in turn.

    Args:
        rounds: each a number of batches, which are computed one after the other.
        ways: compute a batch.
    """
    best_s = [float("inf")] * len(ways)
    for batches in rounds:
        for index, way in enumerate(ways):
            start_s = time.perf_counter()
            for batch in batches:
                way(batch)
            best_s[index] = min(best_s[index], time.perf_counter() - start_s)
    num_tokens = sum(case.num_tokens for batch in rounds[0] for case in batch)
    return [num_tokens / seconds for seconds in best_s]


def compare_with_transformers(report: Report, model: LlamaForCausalLM, num_rounds: int) -> None:
    with Server("valkey") as server:
        settings = Settings.load(redis_url=server.url, num_threads=NUM_THREADS, max_rows=MAX_ROWS, measure_ms=0)
        with Fleet(settings), Client(settings) as client:
            ways = functools.partial(through_fleet, client), functools.partial(generate, model)
            for way in ways:
                way(cases(2, seed=1000))
            alone = [[[case] for case in cases(4, seed=number)] for number in range(num_rounds)]
            together = [[cases(16, seed=100 + number)] for number in range(num_rounds)]
            for name, rounds in (("decode/1", alone), ("throughput/16", together)):
                ours, theirs = best_rates(rounds, *ways)
                report.add(f"cpu/{name}", "tokens_per_s", ours, "1/s", peer="transformers", peer_value=theirs)


class TimedOperations(PlannedOperations[Ragged]):
    """Measures how long the model takes of each step."""

    model_s = 0.0

    @contextmanager
    def step(self, batch: Ragged) -> Iterator[None]:
        with super().step(batch):
            start_s = time.perf_counter()
            yield
            self.model_s += time.perf_counter() - start_s


class Bench:
    """The engine alone, in this process."""

    def __init__(self) -> None:
        self.operations = TimedOperations(ReferenceOperations())
        folder = resolve("smollm2-135m", default_cache_dir()).path
        self.loaded = load(folder, self.operations, torch.float32)

    def engine(self) -> Engine:
        return host_engine(
            self.loaded, self.operations, max_rows=MAX_ROWS, kv_tokens=KV_TOKENS, step_tokens=STEP_TOKENS
        )


def measure_step_share(report: Report, bench: Bench) -> None:
    """Decoding 1 and 16 rows: what of a step is neither the model's operations nor waiting for them."""
    for num_rows in (1, 16):
        engine = bench.engine()
        for row, case in enumerate(cases(num_rows, seed=0)):
            engine.add(Add(row, case.prompt, (), greedy(100)))
        while len(engine.step().tokens) < num_rows:
            pass
        shares = []
        for _ in range(80):
            bench.operations.model_s, start_s = 0.0, time.perf_counter()
            engine.step()
            shares.append(1 - bench.operations.model_s / (time.perf_counter() - start_s))
        report.add("cpu/step-share", f"outside_model_{num_rows}", statistics.median(shares), "", peer="goal",
                   peer_value=0.1)  # fmt: skip


def measure_prefix(report: Report, bench: Bench) -> None:
    """32 requests that share 1,000 tokens and end in one of their own, all at once: prompt work, and time to tokens."""
    rng = random.Random(1)
    text = tuple(rng.randrange(*VOCAB) for _ in range(1000))
    tokens: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for num_rows in (1, 32):
        engine = bench.engine()
        for row in range(num_rows):
            engine.add(Add(row, (*text, 1000 + row), (), greedy(4)))
        start_s = time.perf_counter()
        first: set[int] = set()
        while len(first) < num_rows:
            first |= {row for row, _, _ in engine.step().tokens}
        seconds[num_rows] = time.perf_counter() - start_s
        tokens[num_rows] = engine.num_prefilled_tokens
    report.add("cpu/prefix-32", "prefilled_tokens", tokens[32], "tokens", peer="one request", peer_value=tokens[1])
    report.add("cpu/prefix-32", "first_tokens_s", seconds[32], "s", peer="one request", peer_value=seconds[1])


def main() -> None:
    options = arguments(str(__doc__), [("rounds", 3, "rounds each way")])
    torch.set_num_threads(NUM_THREADS)
    report = Report("scripts/bench/cpu.py")
    folder = resolve("smollm2-135m", default_cache_dir()).path
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    compare_with_transformers(report, model, options.rounds)
    del model
    bench = Bench()
    measure_step_share(report, bench)
    measure_prefix(report, bench)
    report.finish(save=options.save)


if __name__ == "__main__":
    main()
