"""Many requests at once: ``throughput/<shape>``, ``idle/<shape>`` and ``prefill/<shape>``.

throughput: 256 requests, lengths in and out uniform from 100 to 1,024, temperature 0.6; output tokens/s from the first
arrival to the last token on the host. idle: the share of time in which the GPU runs nothing, in a stretch of steps
of the same workload, whose sizes the engine has met before, and how these were launched. prefill: 64 prompts of 1,024
tokens, one token each; prompt tokens/s.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from headrace.bench.bench import Bench
from headrace.bench.case import Case, Figure, beside_vllm
from headrace.bench.driving import drive, warm_up
from headrace.bench.idle import Idle, idle_shares, meet_sizes
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
    """Output tokens/s of an engine alone: as measured in this run, else one round of it, behind one not counted."""
    key = f"throughput/{shape}", "output_tokens_per_s"
    if key not in bench.results:
        engine, requests = bench.engine(shape), bench.requests(shape)
        warm_up(engine, requests, bench.effort.num_requests)
        lengths = ragged(bench.effort.num_requests)
        bench.results[key] = [drive(engine, requests.adds(lengths, TEMPERATURE)).tokens_per_s for _ in range(2)][-1]
    return bench.results[key]


def _throughput(bench: Bench, *, shape: str) -> Iterator[Figure]:
    engine, requests = bench.engine(shape), bench.requests(shape)
    warm_up(engine, requests, bench.effort.num_requests)
    rates = [
        drive(engine, requests.adds(ragged(bench.effort.num_requests), TEMPERATURE)).tokens_per_s
        for _ in bench.rounds()
    ]
    yield Figure.median("output_tokens_per_s", rates, "tokens/s", *beside_vllm(_THROUGHPUT_VLLM.get(shape)))


def _idle(bench: Bench, *, shape: str) -> Iterator[Figure]:
    engine, requests = bench.engine(shape), bench.requests(shape)
    warm_up(engine, requests, bench.effort.num_requests)
    meet_sizes(engine, requests.adds(ragged(bench.effort.num_requests), TEMPERATURE))
    shares = []
    for _ in bench.rounds():
        shares.append(idle_shares(engine, requests.adds(ragged(bench.effort.num_requests), TEMPERATURE), bench.machine))
        engine.clear()
    yield from _idle_figures("decoding_steps", [share.decoding for share in shares])
    yield from _idle_figures("steps_with_prompts", [share.with_prompts for share in shares])


def _idle_figures(what: str, stretches: Sequence[Idle]) -> Iterator[Figure]:
    yield Figure.median(f"share_of_{what}", [each.share for each in stretches], "1")
    yield Figure.median(f"share_of_{what}_in_gaps_below_10_us", [each.brief_share for each in stretches], "1")
    launches = [each.launches for each in stretches]
    yield Figure.median(f"{what}_replayed", [each.num_replayed for each in launches], "steps")
    yield Figure.median(f"{what}_captured", [each.num_captured for each in launches], "steps")
    yield Figure.median(f"{what}_launched_by_kernel", [each.num_by_kernel for each in launches], "steps")


def prompt_rates(bench: Bench, engine: Engine, requests: Requests) -> list[float]:
    """Measure prompt tokens/s, a value each round."""
    lengths = [Lengths(_PROMPT, 1)] * _NUM_PROMPTS
    drive(engine, requests.adds(lengths))
    return [_NUM_PROMPTS * _PROMPT / drive(engine, requests.adds(lengths)).seconds for _ in bench.rounds()]


def _prefill(bench: Bench, *, shape: str) -> Iterator[Figure]:
    rates = prompt_rates(bench, bench.engine(shape), bench.requests(shape))
    yield Figure.median("prompt_tokens_per_s", rates, "tokens/s", *beside_vllm(_PREFILL_VLLM.get(shape)))
