"""What a GPU runs during steps, by torch's profiler, and whose it is."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch.profiler import ProfilerActivity, profile

from headrace.kernels.build import CUDA_DIR
from headrace.testing.plain_params import plain_params
from headrace.workers.channel import Add
from headrace.workers.engine.device_engine import DeviceEngine

Origin = Literal["ours", "product", "copy", "other"]

#: What may stand between a kernel's type and its name: attributes, of which some are for some macros only.
_BEFORE_NAME = r"__\w+__\((?:[^()]|\([^()]*\))*\)|#[^\n]*"
_ENTRY = re.compile(rf'extern "C" __global__ void (?:(?:{_BEFORE_NAME})\s+)*(?!__)(\w+)\(')
#: Products: cuBLAS, cuBLASLt with CUTLASS and XMMA behind it, and what sums up their parts.
_PRODUCT = re.compile(r"gemm|gemv|cublas|cutlass|xmma|splitK|nvjet|sm\d+_.*tensorop", re.I)
#: Products of ours.
_OWN_PRODUCT = re.compile(r"^(thin|middle|wide|fixed)_product")
_COPY = re.compile(r"^Mem(cpy|set)")


@dataclass(frozen=True, slots=True)
class Launches:
    """All launches of one kernel.

    Attributes:
        name: the kernel's.
        origin: whose it is.
        count: launches.
        microseconds: of all of them.
    """

    OTHER: ClassVar[Origin] = "other"

    name: str
    origin: Origin
    count: int
    microseconds: float


def own_kernels() -> frozenset[str]:
    """Names of the kernels in ``kernels/cuda``."""
    return frozenset(name for path in CUDA_DIR.glob("*.cu") for name in _ENTRY.findall(path.read_text()))


def is_product(name: str) -> bool:
    """Whether a kernel multiplies matrices, whoever's it is."""
    return bool(_OWN_PRODUCT.match(name) or _PRODUCT.search(name))


def profile_steps(
    made: DeviceEngine, num_rows: int, *, long_prompt: int | None = None
) -> Iterator[tuple[str, list[Launches]]]:
    """Profile a step of each kind, once its lengths have been seen.

    Rows differ in how they draw: greedily, by temperature with top-p, with penalties, with a bias and logprobs.

    Args:
        made: an engine without rows.
        num_rows: of the steps of most kinds.
        long_prompt: tokens of a prompt that has a step of its own, where other kernels may serve; None: no such step.
    """
    engine = made.engine
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {"temperature": 0.8, "top_p": 0.9, "top_k": 50},
        {"temperature": 1.0, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
        {"logit_bias": ((5, 1.0),), "logprobs": 3},
    )

    def add(row: int, length: int) -> None:
        prompt = tuple((7 * row + i) % 300 for i in range(length))
        engine.add(Add(row, prompt, (), plain_params(64, **kinds[row % len(kinds)])))

    for attempt in range(2):
        for row in range(num_rows):
            add(100 * attempt + row, 40 + row)
        kind = "prompts alone"
        for kind in ("prompts alone", "rows that decode"):
            yield from _profiled(engine.step, kind, wanted=attempt == 1)
        add(100 * attempt + 99, 90)
        yield from _profiled(engine.step, "rows that decode beside a prompt", wanted=attempt == 1)
        engine.clear()
        if long_prompt is not None:
            add(100 * attempt + 50, long_prompt)
            yield from _profiled(engine.step, "a long prompt", wanted=attempt == 1)
            engine.clear()


def _profiled(step: Any, kind: str, *, wanted: bool) -> Iterator[tuple[str, list[Launches]]]:
    if not wanted:
        step()
        return
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        step()
        torch.cuda.synchronize()
    own = own_kernels()
    yield (
        kind,
        [
            Launches(event.key, _origin(event.key, own), event.count, event.self_device_time_total)
            for event in profiler.key_averages()
            if event.self_device_time_total
        ],
    )


def _origin(name: str, own: frozenset[str]) -> Origin:
    if name in own:
        return "ours"
    if _COPY.match(name):
        return "copy"
    return "product" if _PRODUCT.search(name) else "other"
