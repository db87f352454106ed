"""For how much of the time a GPU runs nothing, by the times of everything that it ran.

torch's profiler (CUPTI) notes when each kernel and copy began and ended. Where they do not cover the time from the
first to the last of them, the GPU was idle. Noting costs both sides a little; a stretch of steps is noted, not all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from headrace.bench.machine import Machine
from headrace.errors import MeasurementError
from headrace.testing.step_profile import device_spans
from headrace.workers.channel import Add
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.launches import Launches

#: Steps noted of each kind, behind as many of the same kind that are not.
_NUM_STEPS = 60


#: Between two kernels of one queue, neither of which waits for the host, there is less.
_BRIEF_US = 10.0


@dataclass(frozen=True, slots=True)
class Idle:
    """A stretch of steps, and when the GPU ran nothing in it.

    Attributes:
        share: of the time, from 0 to 1.
        brief_share: the part of it in gaps of less than 10 us: from one kernel's end to the next one's first block.
        launches: how its steps were launched.
    """

    share: float
    brief_share: float
    launches: Launches


@dataclass(frozen=True, slots=True)
class IdleShares:
    """Two stretches.

    Attributes:
        with_prompts: steps in which prompts were computed.
        decoding: steps in which all rows decoded.
    """

    with_prompts: Idle
    decoding: Idle


def meet_sizes(engine: Engine, adds: Sequence[Add]) -> None:
    """Run requests as ``idle_shares`` does, as far as their prompts go, so that no size of these steps is new then."""
    for add in adds:
        engine.add(add)
    engine.step()
    while engine.has_rows and engine.work.prompts:
        engine.step()
    engine.clear()


def idle_shares(engine: Engine, adds: Sequence[Add], machine: Machine) -> IdleShares:
    """Run requests, and note a stretch of the steps with prompts and one of those without.

    The rows are not run to their ends: the caller clears them.

    Raises:
        MeasurementError: there is no GPU to watch, or the requests end too soon.
    """
    machine.require_gpu("idle time")
    for add in adds:
        engine.add(add)
    engine.step()
    with_prompts = _noted(engine, while_prompts=True)
    while engine.has_rows and engine.work.prompts:
        engine.step()
    for _ in range(_NUM_STEPS):
        engine.step()
    return IdleShares(with_prompts, _noted(engine, while_prompts=False))


def _noted(engine: Engine, *, while_prompts: bool) -> Idle:
    before = engine.launches
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(_NUM_STEPS):
            if not engine.has_rows or (while_prompts and not engine.work.prompts):
                break
            engine.step()
        torch.cuda.synchronize()
    spans = [(span.begin_us, span.end_us) for span in device_spans(profiler)]
    return Idle(idle_share(spans), idle_share(spans, most=_BRIEF_US), engine.launches.since(before))


def idle_share(spans: Sequence[tuple[float, float]], most: float = math.inf) -> float:
    """Share of the time from the first beginning to the last end that no span covers.

    Args:
        spans: beginnings and ends in any unit, by their beginnings; they may overlap.
        most: gaps of this length and longer ones do not count.

    Raises:
        MeasurementError: there are none.
    """
    if not spans:
        raise MeasurementError("the profiler noted nothing that the GPU ran")
    idle, end = 0.0, spans[0][0]
    for begin, until in spans:
        gap = max(0.0, begin - end)
        idle += gap if gap < most else 0.0
        end = max(end, until)
    return idle / (end - spans[0][0])
