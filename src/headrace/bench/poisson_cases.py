"""``poisson/<shape>/<percent>``: requests that arrive at random moments, at a share of what the engine can do.

Lengths are the throughput's; so many requests arrive in a second that their output is that share of the throughput
measured in the same run. TTFT counts from the moment at which a request was due, at the engine's public call.
"""

import random
import statistics
from collections.abc import Iterator
from functools import partial

from headrace.bench.bench import Bench
from headrace.bench.case import Case, Figure
from headrace.bench.driving import serve, warm_up
from headrace.bench.throughput_cases import TEMPERATURE, throughput
from headrace.bench.workload import ragged

_PERCENTS = (50, 80, 95)


def cases(shape: str) -> list[Case]:
    """The cases of one shape."""
    return [
        Case(f"poisson/{shape}/{percent}", shape, partial(_measure, shape=shape, share=percent / 100))
        for percent in _PERCENTS
    ]


def _measure(bench: Bench, *, shape: str, share: float) -> Iterator[Figure]:
    rate = throughput(bench, shape)
    engine, requests = bench.engine(shape), bench.requests(shape)
    warm_up(engine, requests, bench.effort.num_requests)
    lengths = ragged(bench.effort.num_requests)
    per_s = share * rate / statistics.mean(each.output for each in lengths)
    gaps = random.Random("gaps")
    ttft, tpot = [], []
    num_rounds = 0
    for _ in bench.rounds():
        due_s, now_s = [], 0.0
        for _ in lengths:
            now_s += gaps.expovariate(per_s)
            due_s.append(now_s)
        served = serve(engine, requests.adds(lengths, TEMPERATURE), due_s)
        ttft += [one.ttft_ms for one in served]
        tpot += [one.tpot_ms for one in served]
        num_rounds += 1
    yield Figure("requests_per_s", per_s, "1/s", num_rounds)
    for name, values in (("ttft", ttft), ("tpot", tpot)):
        percentiles = statistics.quantiles(values, n=100, method="inclusive")
        yield Figure(f"{name}_p50_ms", percentiles[49], "ms", num_rounds)
        yield Figure(f"{name}_p99_ms", percentiles[98], "ms", num_rounds)
