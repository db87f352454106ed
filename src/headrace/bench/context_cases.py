"""``context/<rows>x<keys>``: what a step takes when rows are long, and how fast attention reads meanwhile.

A step's time is wall time at the engine's public call. Attention's is what torch's profiler says of its kernels; the
bytes are the keys and values that must be read once. The card's own rate is that of a sum over memory, in the same run.
"""

import time
from collections.abc import Iterator
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from headrace.bench.bench import Bench
from headrace.bench.case import Case, Figure
from headrace.bench.machine import Limits
from headrace.bench.workload import Lengths, Requests
from headrace.errors import MeasurementError
from headrace.testing.gpu_timing import Timer
from headrace.workers.engine.engine import Engine

_SIZES = ((8, 32_000), (64, 4_000))
_LIMITS = Limits(max_rows=64, row_tokens=33_000, positions=33_000)
_NUM_STEPS, _NUM_PROFILED = 100, 10
_READ_BYTES, _ATTEMPTS = 8 << 30, 3


def cases(shape: str) -> list[Case]:
    """The cases, on one shape."""
    return [
        Case(f"context/{rows}x{keys}", shape, partial(_measure, shape=shape, num_rows=rows, num_keys=keys))
        for rows, keys in _SIZES
    ]


def _measure(bench: Bench, *, shape: str, num_rows: int, num_keys: int) -> Iterator[Figure]:
    bench.machine.require_gpu("the rate of attention")
    rate = read_gb_per_s(bench)
    engine, requests = bench.engine(shape, _LIMITS), Requests(bench.vocab_size(shape))
    for add in requests.adds([Lengths(num_keys, 900)] * num_rows):
        engine.add(add)
    drawn: set[int] = set()
    while len(drawn) < num_rows:
        drawn |= {row for row, _, _ in engine.step().tokens}
    _steps(engine, 5)
    steps_ms = [_steps(engine, _NUM_STEPS) / _NUM_STEPS for _ in bench.rounds()]
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        _steps(engine, _NUM_PROFILED)
        torch.cuda.synchronize()
    lengths = num_keys + sum(1 for _ in steps_ms) * _NUM_STEPS
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
    """What the card reads at most, measured once a run: by a sum, and by a copy, whose writes count as well."""
    key = "card", "gb_per_s"
    if key not in bench.results:
        bench.release()
        source = torch.empty(_READ_BYTES // 4, dtype=torch.float32, device=bench.machine.device).normal_()
        timer = Timer(bench.machine.device)
        rates = [_READ_BYTES / timer.medians_us([lambda: torch.sum(source)], 10)[0] / 1e3 for _ in range(_ATTEMPTS)]
        bench.results[key] = max(*rates, timer.copy_gb_per_s())
    return bench.results[key]


def _steps(engine: Engine, count: int) -> float:
    """Take so many steps; the ms that they took."""
    begin_s = time.perf_counter()
    for _ in range(count):
        engine.step()
    return (time.perf_counter() - begin_s) * 1000
