"""For how much of the time a GPU runs nothing, by the times of everything that it ran.

torch's profiler (CUPTI) notes when each kernel and copy began and ended. Where they do not cover the time from the
first to the last of them, the GPU was idle. Noting costs both sides a little; a stretch of steps is noted, not all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from headrace.bench.machine import Machine
from headrace.errors import MeasurementError
from headrace.testing.step_profile import device_spans
from headrace.workers.channel import Add
from headrace.workers.engine.engine import Engine

#: Steps noted of each kind, behind as many of the same kind that are not.
_NUM_STEPS = 60


@dataclass(frozen=True, slots=True)
class IdleShares:
    """Shares of time in which the GPU ran nothing, from 0 to 1.

    Attributes:
        with_prompts: while prompts were computed.
        decoding: while all rows decoded.
    """

    with_prompts: float
    decoding: float


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


def _noted(engine: Engine, *, while_prompts: bool) -> float:
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(_NUM_STEPS):
            if not engine.has_rows or (while_prompts and not engine.work.prompts):
                break
            engine.step()
        torch.cuda.synchronize()
    return idle_share([(span.begin_us, span.end_us) for span in device_spans(profiler)])


def idle_share(spans: Sequence[tuple[float, float]]) -> float:
    """Share of the time from the first beginning to the last end that no span covers.

    Args:
        spans: beginnings and ends in any unit, by their beginnings; they may overlap.

    Raises:
        MeasurementError: there are none.
    """
    if not spans:
        raise MeasurementError("the profiler noted nothing that the GPU ran")
    idle, end = 0.0, spans[0][0]
    for begin, until in spans:
        idle += max(0.0, begin - end)
        end = max(end, until)
    return idle / (end - spans[0][0])
