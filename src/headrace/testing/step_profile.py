"""Where each microsecond of a step goes in which every row decodes: what a GPU ran, when, and when it ran nothing.

Kernels may overlap: one that begins early waits for the one before it. A moment belongs to the kernel that has run
longest, so that the parts of a step add up to its time.
"""

import re
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from headrace.testing.gpu_profile import is_product
from headrace.testing.plain_params import plain_params
from headrace.workers.channel import Add
from headrace.workers.engine.engine import Engine

#: Steps that are profiled, behind as many that are only timed.
NUM_STEPS = 40
NOTHING = "nothing runs"

_PROMPT = 128
_LAST, _ATTENTION = "tell_host", "decode_attention"
_PRODUCTS = ("out", "gate and up", "down", "q, k, v")
#: Sums up the parts of the product before it.
_REDUCES = re.compile(r"splitK.*reduce", re.I)


@dataclass(frozen=True, slots=True)
class Span:
    """One kernel or copy, in microseconds."""

    name: str
    begin_us: float
    end_us: float


@dataclass(frozen=True, slots=True)
class Part:
    """What a step's launches of one kind take.

    Attributes:
        name: of the kind.
        launches: a step.
        us: a step, median.
    """

    name: str
    launches: float
    us: float


@dataclass(frozen=True, slots=True)
class StepProfile:
    """A step.

    Attributes:
        parts: the longest first; their sum is the step on the GPU, but for medians.
        step_us: from one step's last kernel to the next one's, median.
        wall_us: a step on the host's clock, without the profiler.
    """

    parts: tuple[Part, ...]
    step_us: float
    wall_us: float


def device_spans(profiler: Any) -> list[Span]:
    """What the GPU ran by a profiler of torch's, by beginnings. It has noted calls of the host's, too: not these."""
    spans = [
        Span(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type.name == "CUDA"
    ]
    return sorted(spans, key=lambda span: (span.begin_us, span.end_us))


def profile_decode(engine: Engine, num_rows: int, vocab_size: int) -> StepProfile:
    """Profile steps of an engine without rows in which so many decode, greedily, behind prompts of 128 tokens."""
    for row in range(num_rows):
        prompt = tuple((31 * row + 7 * index) % vocab_size for index in range(_PROMPT))
        engine.add(Add(row, prompt, (), plain_params(4 * NUM_STEPS)))
    engine.step()
    while engine.work.prompts:
        engine.step()
    _steps(engine)  # captures, and lets places settle
    begin_s = time.perf_counter()
    _steps(engine)
    wall_us = (time.perf_counter() - begin_s) * 1e6 / NUM_STEPS
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        _steps(engine)
        torch.cuda.synchronize()
    engine.clear()
    return summarise(device_spans(profiler), wall_us)


def summarise(spans: Sequence[Span], wall_us: float) -> StepProfile:
    """Share the time of whole steps out.

    Args:
        spans: by beginnings; what is before the end of the first step's last kernel counts for nothing.
        wall_us: of a step, to be told beside.

    Raises:
        ValueError: there are not two steps among them.
    """
    steps = list(_whole_steps(spans))
    if not steps:
        raise ValueError(f"no two kernels called {_LAST} among {len(spans)}: no whole step was profiled")
    times: dict[str, list[float]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for begin_us, step in steps:
        taken: dict[str, float] = defaultdict(float)
        covered_us = begin_us
        for name, span in zip(parts_of([span.name for span in step]), step, strict=True):
            taken[NOTHING] += max(0.0, span.begin_us - covered_us)
            taken[name] += max(0.0, span.end_us - max(span.begin_us, covered_us))
            covered_us = max(covered_us, span.end_us)
            counts[name] += 1
        for name, us in taken.items():
            times[name].append(us)
    found = [
        Part(name, counts[name] / len(steps), statistics.median([*us, *[0.0] * (len(steps) - len(us))]))
        for name, us in times.items()
    ]
    step_us = statistics.median(step[-1].end_us - begin_us for begin_us, step in steps)
    return StepProfile(tuple(sorted(found, key=lambda part: -part.us)), step_us, wall_us)


def parts_of(names: Sequence[str]) -> list[str]:
    """Name the parts of one step: products by where they stand, all else by the kernel.

    Behind attention come the products ``out``, gate and up, ``down``, and the next layer's queries, keys and values;
    behind the last layer's, the logits.
    """
    num_left = sum(name == _ATTENTION for name in names)
    found: list[str] = []
    place = len(_PRODUCTS) - 1  # the first product is a layer's first
    for name in names:
        if name == _ATTENTION:
            place, num_left = 0, num_left - 1
        if not is_product(name):
            found.append(name)
        elif _REDUCES.search(name) and found:
            found.append(next((part for part in reversed(found) if part.endswith(" product")), "product"))
        else:
            at_end = num_left == 0 and place >= len(_PRODUCTS) - 1
            found.append("logits product" if at_end else f"{_PRODUCTS[place % len(_PRODUCTS)]} product")
            place += 1
    return found


def _steps(engine: Engine) -> None:
    for _ in range(NUM_STEPS):
        engine.step()


def _whole_steps(spans: Iterable[Span]) -> Iterator[tuple[float, list[Span]]]:
    """Each step's beginning, which is the end of the one before, and what it ran."""
    begin_us: float | None = None
    step: list[Span] = []
    for span in spans:
        step.append(span)
        if span.name == _LAST:
            if begin_us is not None:
                yield begin_us, step
            begin_us, step = max(one.end_us for one in step), []
