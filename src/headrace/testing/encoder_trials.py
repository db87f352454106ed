"""The serving experiment on one encoder: every way with every seed, and the latencies below what naive batches bear."""

import time
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final

import torch
from rich.console import Console

from headrace.testing.encoder_rates import EncoderRates, EncoderWay
from headrace.testing.encoder_worker import BERT_BASE, EncoderWorker
from headrace.testing.rate_outcome import Outcome
from headrace.testing.rate_search import percentile
from headrace.workers.garbage import look_seldom
from headrace.workers.model_store.store import default_cache_dir, pull

MINILM: Final = "all-minilm-l6-v2"
#: At which latencies are told, of the rate at which the first way is critical.
ENCODER_LOADS: Final = (0.5, 0.8, 1.0)
#: Of what a way is warmed up at: of the rate that the worker would bear one by one.
_WARM_UP_LOAD: Final = 0.8
#: Of a search, near the answer of another seed and without one.
_STRIDE, _FIRST_STRIDE = 1.1, 1.3


@cache
def encoder_worker(runtime: str, num_threads: int, max_graphs: int) -> EncoderWorker:
    """The encoder of ``minilm`` or ``bert-base``, one for all lengths."""
    if runtime == "minilm":
        folder = pull(MINILM, default_cache_dir(), Console(stderr=True))
        worker = EncoderWorker.on_cpu(folder.path, num_threads)
    else:
        worker = EncoderWorker.on_gpu(BERT_BASE, torch.device("cuda", 0), torch.float16, max_graphs)
    look_seldom()  # as the engine's own process does
    return worker


def try_seeds(
    rates: EncoderRates, ways: Sequence[EncoderWay], seeds: Sequence[int], warm_up_s: float, budget_s: float
) -> Iterator[tuple[int, str, Outcome]]:
    """Every way with every seed, as (seed, way, outcome).

    Each search begins where the way's last one ended; its first one where the first way's did, and with longer strides.

    Args:
        rates: of the trials.
        ways: the first one is what loads are shares of.
        seeds: of arrivals and lengths.
        warm_up_s: for how long requests arrive before anything is timed, for each way.
        budget_s: no seed is begun that would end later than this, but the first one; 0: all are.
    """
    begin_s = time.monotonic()
    for way in ways:
        rates.warm_up(way, _WARM_UP_LOAD * rates.first_guess, warm_up_s)
    guesses: dict[str, float] = {}
    for number, seed in enumerate(seeds):
        if number and budget_s and time.monotonic() - begin_s > budget_s * number / (number + 1):
            return
        base = 0.0
        for way in ways:
            guess = guesses.get(way.name, base or rates.first_guess)
            stride = _STRIDE if way.name in guesses else _FIRST_STRIDE
            critical = rates.critical_rate(way, seed, guess, stride=stride, precision=1.05)
            guesses[way.name], base = critical, base or critical
            runs = [rates.latencies_ms(way, load * base, seed) for load in ENCODER_LOADS]
            yield (
                seed,
                way.name,
                Outcome(critical, tuple((percentile(run, 0.5), percentile(run, 0.99)) for run in runs)),
            )
