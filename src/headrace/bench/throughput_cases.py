"""Many requests at once: ``throughput/<shape>``, ``idle/<shape>`` and ``prefill/<shape>``.

throughput: 256 requests, lengths in and out uniform from 100 to 1,024, temperature 0.6; output tokens/s from the first
arrival to the last token on the host. idle: the share of time in which the GPU runs nothing, in a stretch of steps
of the same workload. prefill: 64 prompts of 1,024 tokens, one token each; prompt tokens/s.
"""

from collections.abc import Iterator
from functools import partial

from headrace.bench.bench import Bench
from headrace.bench.case import Case, Figure, beside_vllm
from headrace.bench.driving import drive, warm_up
from headrace.bench.idle import idle_shares
from headrace.bench.workload import Lengths, Requests, ragged
from headrace.workers.engine.engine import Engine

_NUM_PROMPTS, _PROMPT = 64, 1024
TEMPERATURE = 0.6
_THROUGHPUT_VLLM = {"L8B": 9_764.0, "Q06": 23_400.0}
_PREFILL_VLLM = {"L8B": 44_026.0, "Q06": 396_001.0}


def cases(shape: str) -> list[Case]:
    """The cases of one shape."""
    return [
        Case(f"throughput/{shape}", shape, partial(_throughput, shape=shape)),
        Case(f"idle/{shape}", shape, partial(_idle, shape=shape)),
        Case(f"prefill/{shape}", shape, partial(_prefill, shape=shape)),
    ]


def throughput(bench: Bench, shape: str) -> float:
    """Output tokens/s of an engine alone: as measured in this run, else one round of it."""
    key = f"throughput/{shape}", "output_tokens_per_s"
    if key not in bench.results:
        engine, requests = bench.engine(shape), Requests(bench.vocab_size(shape))
        warm_up(engine, requests, bench.effort.num_requests)
        bench.results[key] = drive(engine, requests.adds(ragged(bench.effort.num_requests), TEMPERATURE)).tokens_per_s
    return bench.results[key]


def _throughput(bench: Bench, *, shape: str) -> Iterator[Figure]:
    engine, requests = bench.engine(shape), Requests(bench.vocab_size(shape))
    warm_up(engine, requests, bench.effort.num_requests)
    rates = [
        drive(engine, requests.adds(ragged(bench.effort.num_requests), TEMPERATURE)).tokens_per_s
        for _ in bench.rounds()
    ]
    yield Figure.median("output_tokens_per_s", rates, "tokens/s", *beside_vllm(_THROUGHPUT_VLLM.get(shape)))


def _idle(bench: Bench, *, shape: str) -> Iterator[Figure]:
    engine, requests = bench.engine(shape), Requests(bench.vocab_size(shape))
    warm_up(engine, requests, bench.effort.num_requests)
    shares = []
    for _ in bench.rounds():
        shares.append(idle_shares(engine, requests.adds(ragged(bench.effort.num_requests), TEMPERATURE), bench.machine))
        engine.clear()
    yield Figure.median("share_of_decoding_steps", [share.decoding for share in shares], "1")
    yield Figure.median("share_of_steps_with_prompts", [share.with_prompts for share in shares], "1")


def prompt_rates(bench: Bench, engine: Engine, requests: Requests) -> list[float]:
    """Measure prompt tokens/s, a value each round."""
    lengths = [Lengths(_PROMPT, 1)] * _NUM_PROMPTS
    drive(engine, requests.adds(lengths))
    return [_NUM_PROMPTS * _PROMPT / drive(engine, requests.adds(lengths)).seconds for _ in bench.rounds()]


def _prefill(bench: Bench, *, shape: str) -> Iterator[Figure]:
    rates = prompt_rates(bench, bench.engine(shape), Requests(bench.vocab_size(shape)))
    yield Figure.median("prompt_tokens_per_s", rates, "tokens/s", *beside_vllm(_PREFILL_VLLM.get(shape)))
