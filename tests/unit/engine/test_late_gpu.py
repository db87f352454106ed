"""One step ahead of a GPU that is as late as it may be: rows get the tokens that they get alone on a CPU."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.engine.device_on_cpu import PagedReference, Stream
from tests.unit.engine.late_gpu import GPU, LateGPU, copy_pages, install

from headrace.job import SamplingParams
from headrace.memory.kv_cache import KVCache
from headrace.memory.pages import Pages
from headrace.memory.staging import Staging
from headrace.testing.churn import churn, requests, solo
from headrace.workers.engine.assembly import kv_shape
from headrace.workers.engine.device_results import DeviceResults
from headrace.workers.engine.device_sampling import DeviceSampler
from headrace.workers.engine.device_steps import NUM_AHEAD, DeviceSteps
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.loading import load
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.runner import Runner
from headrace.workers.engine.state_memory import _Staging

MAX_ROWS, KV_TOKENS, STEP_TOKENS, PAGE_SIZE = 12, 260, 40, 4
Params = Callable[..., SamplingParams]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> LateGPU:
    gpu = LateGPU()
    install(gpu, monkeypatch)
    return gpu


def make(gpu: LateGPU, folder: Path) -> Engine:
    operations: Any = PagedReference()
    loaded = load(folder, operations, torch.float32)
    shape, config = kv_shape(loaded.model, PAGE_SIZE), loaded.model.config
    pages = Pages(shape.pages_for(KV_TOKENS), PAGE_SIZE)
    cache = KVCache(
        num_layers=shape.num_layers,
        num_pages=pages.num_pages,
        page_size=PAGE_SIZE,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        dtype=torch.float32,
        order="heads",
        storage=torch.zeros(pages.num_pages * shape.page_bytes, dtype=torch.uint8, device=GPU),
        copy_pages=gpu.later(copy_pages),
    )
    rows = RowState(MAX_ROWS, shape.pages_for(KV_TOKENS), GPU)
    sampler = DeviceSampler(rows, config.vocab_size, KV_TOKENS, num_steps=NUM_AHEAD + 1)
    stream: Any = Stream()
    steps = DeviceSteps(
        loaded.model,
        cache,
        operations,
        rows,
        sampler,
        stream=stream,
        max_tokens=MAX_ROWS + STEP_TOKENS,
        keep=lambda lengths: None,
    )
    return Engine(
        loaded,
        Runner(steps),
        pages,
        max_rows=MAX_ROWS,
        step_tokens=STEP_TOKENS,
        kv_tokens=KV_TOKENS,
        row_tokens=KV_TOKENS,
    )


@torch.inference_mode()
def wrong_rows(gpu: LateGPU, folder: Path, alone: Engine, params: Params, num_requests: int) -> list[int]:
    """Let rows come and go, and tell which have not got what they get alone."""
    rng = random.Random(4)
    families = requests(params, rng, num_requests)
    with gpu:
        engine = make(gpu, folder)
        tokens, cancelled = churn(engine, families, rng)
    assert engine.num_used_pages == 0
    assert engine.num_preemptions > 3
    wrong = []
    for add in (add for family in families for add in family):
        found, expected = tokens[add.row], solo(alone, add)
        if found != (expected[: len(found)] if add.row in cancelled else expected):
            wrong.append(add.row)
    return wrong


def alone_of(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(max_rows=1, kv_tokens=4096, step_tokens=4096, page_size=4096)


def test_nothing_that_the_host_writes_comes_too_early(
    gpu: LateGPU, model_dir: Path, make_engine: Callable[..., Engine], params: Params
) -> None:
    assert not wrong_rows(gpu, model_dir, alone_of(make_engine), params, 60)
    assert gpu.most_waiting > 20, "nothing was late"


def unguarded_begin(self: Staging) -> None:
    self._num_bytes = 0


def unguarded_upload(self: _Staging, changes: torch.Tensor) -> torch.Tensor:
    pinned, there = self._pinned[0, : len(changes)], self._device[: len(changes)]
    pinned.copy_(changes)
    there.copy_(pinned, non_blocking=True)
    return there


def too_few_slots(self: DeviceResults, max_rows: int, device: torch.device, num_steps: int) -> None:
    INIT(self, max_rows, device, num_steps - 1)


INIT = DeviceResults.__init__


@pytest.mark.parametrize(
    ("where", "name", "broken"),
    [
        (Staging, "begin", unguarded_begin),
        (_Staging, "upload", unguarded_upload),
        (DeviceResults, "__init__", too_few_slots),
    ],
)
def test_a_host_that_does_not_wait_for_its_memory_is_found_out(
    gpu: LateGPU,
    model_dir: Path,
    make_engine: Callable[..., Engine],
    params: Params,
    monkeypatch: pytest.MonkeyPatch,
    where: type,
    name: str,
    broken: Callable[..., object],
) -> None:
    monkeypatch.setattr(where, name, broken)
    try:
        is_found_out = bool(wrong_rows(gpu, model_dir, alone_of(make_engine), params, 40))
    except (IndexError, AssertionError):  # what a step reads are no numbers of its rows, or not what was said of them
        is_found_out = True
    assert is_found_out
