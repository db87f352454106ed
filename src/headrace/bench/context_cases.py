"""``context/<rows>x<keys>``: what a step takes when rows are long, and how fast attention reads meanwhile.

A step's time is wall time at the engine's public call. Attention's is what torch's profiler says of its kernels; the
bytes are the keys and values that must be read once. The card's own rate is that of a look for the greatest of many
numbers, in the same run.
"""

import time
from collections.abc import Iterator
from functools import partial
from itertools import islice

import torch
from torch.profiler import ProfilerActivity, profile

from headrace.bench.bench import Bench
from headrace.bench.case import Case, Figure
from headrace.bench.machine import Limits
from headrace.bench.workload import Lengths
from headrace.errors import MeasurementError
from headrace.testing.graph_timing import GraphTimer
from headrace.workers.engine.engine import Engine

_SIZES = ((8, 32_000), (64, 4_000))
_LIMITS = Limits(max_rows=64, row_tokens=33_000, positions=33_000)
_NUM_NEW, _NUM_UNTIMED, _NUM_STEPS, _NUM_PROFILED = 900, 5, 100, 10
#: More rounds would outlast the rows, of whose tokens some are drawn while others' prompts are computed.
_MOST_ROUNDS = 8


def cases(shape: str) -> list[Case]:
    """The cases, on one shape."""
    return [
        Case(f"context/{rows}x{keys}", shape, partial(_measure, shape=shape, num_rows=rows, num_keys=keys))
        for rows, keys in _SIZES
    ]


def _measure(bench: Bench, *, shape: str, num_rows: int, num_keys: int) -> Iterator[Figure]:
    bench.machine.require_gpu("the rate of attention")
    rate = read_gb_per_s(bench)
    engine, requests = bench.engine(shape, _LIMITS), bench.requests(shape)
    for add in requests.adds([Lengths(num_keys, _NUM_NEW)] * num_rows):
        engine.add(add)
    drawn: set[int] = set()
    while len(drawn) < num_rows:
        drawn |= {row for row, _, _ in engine.step().tokens}
    for _ in range(_NUM_UNTIMED):
        engine.step()
    steps_ms = [decode_ms(engine, _NUM_STEPS, num_rows) / _NUM_STEPS for _ in islice(bench.rounds(), _MOST_ROUNDS)]
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        decode_ms(engine, _NUM_PROFILED, num_rows)
        torch.cuda.synchronize()
    lengths = num_keys + len(steps_ms) * _NUM_STEPS
    engine.clear()
    attention_us = sum(
        event.self_device_time_total for event in profiler.key_averages() if "decode_attention" in event.key
    )
    if not attention_us:
        raise MeasurementError("no kernel called decode_attention ran")
    num_bytes = num_rows * lengths * kv_bytes_per_token(bench, shape)
    attention_rate = num_bytes * _NUM_PROFILED / attention_us / 1000
    yield Figure.median("ms_per_step", steps_ms, "ms")
    yield Figure("attention_gb_per_s", attention_rate, "GB/s", 1, "the card reads", rate)


def kv_bytes_per_token(bench: Bench, shape: str) -> int:
    """Keys and values of one token, in all layers."""
    config = bench.shapes[shape]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    heads: int = config["num_key_value_heads"]
    return int(config["num_hidden_layers"] * 2 * heads * head_dim * bench.machine.dtype.itemsize)


def read_gb_per_s(bench: Bench) -> float:
    """What the card reads at most, measured once a run."""
    key = "card", "gb_per_s"
    if key not in bench.results:
        bench.release()
        bench.results[key] = GraphTimer(bench.machine.device).read_gb_per_s()
    return bench.results[key]


def decode_ms(engine: Engine, count: int, num_rows: int) -> float:
    """Take so many steps in which so many rows decode; the ms that they took.

    Raises:
        MeasurementError: a row has ended, or a step computed something else.
    """
    begin_s = time.perf_counter()
    for _ in range(count):
        if len(engine.step().tokens) != num_rows:
            raise MeasurementError(f"not all of {num_rows} rows decoded in a step that was timed")
    return (time.perf_counter() - begin_s) * 1000
