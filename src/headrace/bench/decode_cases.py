"""``decode/<shape>/<rows>``: what a step takes in which every row decodes.

Prompts of 128 tokens are added at once and run to 256 new tokens, and to one: (T256 - T1) / 255 of wall time at the
engine's public call, with admission, sampling, stop checks and token ids on the host.
"""

from collections.abc import Iterator
from functools import partial

from headrace.bench.bench import Bench
from headrace.bench.case import Case, Figure, beside_vllm
from headrace.bench.driving import drive
from headrace.bench.workload import Lengths, Requests
from headrace.workers.engine.engine import Engine

ROWS = (1, 8, 32, 64, 128, 256)
_PROMPT, _NEW = 128, 256
#: ms a step of vLLM 0.24.0 with CUDA graphs on one H200, measured on another day.
_VLLM = {
    "L8B": dict(zip(ROWS, (4.83, 5.00, 5.43, 6.04, 7.25, 11.05), strict=True)),
    "Q06": dict(zip(ROWS, (1.62, 1.64, 2.03, 2.33, 3.30, 4.79), strict=True)),
}


def cases(shape: str) -> list[Case]:
    """The cases of one shape."""
    return [Case(f"decode/{shape}/{rows}", shape, partial(_measure, shape=shape, num_rows=rows)) for rows in ROWS]


def step_times_ms(bench: Bench, engine: Engine, requests: Requests, num_rows: int) -> list[float]:
    """Measure what a step takes in which so many rows decode, a value each round."""

    def seconds(num_new: int) -> float:
        return drive(engine, requests.adds([Lengths(_PROMPT, num_new)] * num_rows)).seconds

    seconds(4)
    return [(seconds(_NEW) - seconds(1)) / (_NEW - 1) * 1000 for _ in bench.rounds()]


def _measure(bench: Bench, *, shape: str, num_rows: int) -> Iterator[Figure]:
    steps_ms = step_times_ms(bench, bench.engine(shape), bench.requests(shape), num_rows)
    yield Figure.median("ms_per_step", steps_ms, "ms", *beside_vllm(_VLLM.get(shape, {}).get(num_rows)))
