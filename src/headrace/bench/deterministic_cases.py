"""``deterministic/<shape>``: what it costs that a row's tokens do not depend on the rows beside it.

Steps and prompts as in ``decode/<shape>/<rows>`` and ``prefill/<shape>``, beside what these were in the same run.
"""

from collections.abc import Iterator
from functools import partial

from headrace.bench.bench import Bench
from headrace.bench.case import Case, Figure
from headrace.bench.decode_cases import step_times_ms
from headrace.bench.machine import Limits
from headrace.bench.throughput_cases import prompt_rates

_ROWS = (1, 32, 256)
_PEER = "not deterministic"


def cases(shape: str) -> list[Case]:
    """The case of one shape."""
    return [Case(f"deterministic/{shape}", shape, partial(_measure, shape=shape))]


def _measure(bench: Bench, *, shape: str) -> Iterator[Figure]:
    bench.machine.require_gpu("a fixed order of sums")
    engine, requests = bench.engine(shape, Limits(deterministic=True)), bench.requests(shape)
    for num_rows in _ROWS:
        plain = bench.results.get((f"decode/{shape}/{num_rows}", "ms_per_step"))
        steps_ms = step_times_ms(bench, engine, requests, num_rows)
        yield Figure.median(f"ms_per_step_of_{num_rows}", steps_ms, "ms", _PEER if plain else "", plain)
    plain = bench.results.get((f"prefill/{shape}", "prompt_tokens_per_s"))
    rates = prompt_rates(bench, engine, requests)
    yield Figure.median("prompt_tokens_per_s", rates, "tokens/s", _PEER if plain else "", plain)
