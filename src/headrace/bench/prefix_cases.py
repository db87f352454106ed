"""``prefix/64x2000``: what 64 requests cost that begin with the same 2,000 tokens, against one of them.

Counted are the prompt's tokens that were computed; timed is the way to the last request's first token.
"""

from collections.abc import Iterator
from functools import partial

from headrace.bench.bench import Bench
from headrace.bench.case import Case, Figure
from headrace.bench.driving import drive

_NUM_REQUESTS, _SHARED = 64, 2000


def cases(shape: str) -> list[Case]:
    """The case, on one shape."""
    return [Case(f"prefix/{_NUM_REQUESTS}x{_SHARED}", shape, partial(_measure, shape=shape))]


def _measure(bench: Bench, *, shape: str) -> Iterator[Figure]:
    engine, requests = bench.engine(shape), bench.requests(shape)

    def run(num_requests: int) -> tuple[float, int]:
        before, prompt = engine.num_prefilled_tokens, requests.prompt(_SHARED)
        driven = drive(engine, [requests.add(prompt, 1) for _ in range(num_requests)], alike=True)
        return driven.seconds * 1000, engine.num_prefilled_tokens - before

    run(1)
    run(_NUM_REQUESTS)
    alone, together = [], []
    for _ in bench.rounds():
        alone.append(run(1))
        together.append(run(_NUM_REQUESTS))
    (alone_ms, alone_tokens), (ms, tokens) = (list(zip(*runs, strict=True)) for runs in (alone, together))
    one = "one request"
    yield Figure.median("prompt_tokens", tokens, "tokens", one, Figure.median("", alone_tokens, "").value)
    yield Figure.median("ms_to_last_first_token", ms, "ms", one, Figure.median("", alone_ms, "").value)
