"""Which kernels the steps of a model ask for, found without a GPU: the real operations, on tensors without data."""

import importlib
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import headrace.kernels
from headrace.kernels import blas, device, launch, tensor_map
from headrace.kernels.cuda_operations import CudaOperations
from headrace.kernels.fixed_operations import FixedOperations
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.paged_batch import PagedBatch, Queries, StepSizes
from headrace.workers.engine.models.gpt2 import Gpt2
from headrace.workers.engine.models.gpt_config import GptConfig, GptJConfig
from headrace.workers.engine.models.gptj import GptJ
from headrace.workers.engine.models.llama import Llama
from headrace.workers.engine.models.llama_config import LlamaConfig
from headrace.workers.engine.models.model import Model
from headrace.workers.engine.plan import Chunk

#: Multiprocessors and shared memory of a block.
GPUS = {"sm_90a": (132, 232448), "sm_80": (108, 166912)}
PAGE_SIZE = 64

_META = torch.device("meta", 0)


class Kernel:
    """One that is never launched."""

    num_registers, local_bytes, max_threads = 128, 0, 1024

    def __init__(self, opened: Any) -> None:
        self.device = opened

    def __call__(self, *_: object, **__: object) -> None: ...


class Checkpoint:
    """Weights of any name."""

    def __contains__(self, name: str) -> bool:
        return True

    def tensor(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=_META)


class Asked(list[tuple[str, str, tuple[tuple[str, object], ...]]]):
    """Source, entry and macros of all kernels so far; one that is loaded twice is there twice."""

    def begin(self) -> None:
        """Begin anew, for another model: kernels of this one are not known there."""
        forget_kernels()
        self.clear()


def install(patch: pytest.MonkeyPatch, arch: str) -> Asked:
    """Put a GPU there that launches nothing."""
    asked = Asked()
    num_sms, shared_bytes = GPUS[arch]
    opened = SimpleNamespace(index=0, arch=arch, num_sms=num_sms, l2_bytes=50 << 20, shared_bytes=shared_bytes)

    def load(source: str, entry: str, params: str, where: torch.device, **defines: Any) -> Kernel:
        defines.pop("shared_bytes", None)
        asked.append((source, entry, tuple(sorted(defines.items()))))
        return Kernel(opened)

    for found in pkgutil.iter_modules(headrace.kernels.__path__):
        module = importlib.import_module(f"headrace.kernels.{found.name}")
        for name, own, replacement in (
            ("load", launch.load, load),
            ("open_device", device.open_device, lambda index: opened),
        ):
            if getattr(module, name, None) is own and module not in (launch, device):
                patch.setattr(module, name, replacement)
    patch.setattr(tensor_map, "_encoded", lambda *_: bytes(128))
    patch.setattr(blas, "_cublaslt", nullcontext)
    patch.setattr(torch.Tensor, "data_ptr", lambda self: 1 << 20)
    patch.setattr(torch.Tensor, "get_device", lambda self: 0)
    patch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    return asked


def forget_kernels() -> None:
    """Let nobody get a kernel that another test has asked for; devices stay open."""
    for name, module in list(sys.modules.items()):
        if name.startswith("headrace.kernels."):
            for value in vars(module).values():
                if value is not device.open_device:  # which many import by this name
                    getattr(value, "cache_clear", lambda: None)()


Config = LlamaConfig | GptConfig | GptJConfig


def _model(config: Config, operations: CudaOperations, dtype: torch.dtype) -> Model:
    match config:
        case GptJConfig():
            return GptJ(config, Checkpoint(), operations, dtype)
        case GptConfig():
            return Gpt2(config, Checkpoint(), operations, dtype)
        case LlamaConfig():
            return Llama(config, Checkpoint(), operations, dtype)


class Stepping:
    """A model of two layers, and steps of it.

    Args:
        config: of the model, and which one it is.
        dtype: of weights and activations.
        max_rows: of a step.
        step_tokens: of a step's prompts.
        deterministic: computes in fixed orders.
    """

    def __init__(
        self, config: Config, dtype: torch.dtype, max_rows: int, step_tokens: int, *, deterministic: bool
    ) -> None:
        self._operations = (FixedOperations if deterministic else CudaOperations)(_META, 0)
        self._model = _model(config, self._operations, dtype)
        max_pages = -(-step_tokens // PAGE_SIZE)
        self._operations.reserve(StepSizes(max_rows, max_pages, max_rows + step_tokens + 128))
        memory = torch.empty(64, 2, config.num_kv_heads, PAGE_SIZE, config.head_dim, dtype=dtype, device=_META)
        table = torch.empty(max_rows, max_pages, dtype=torch.int32, device=_META)
        self._pages = [
            (KVPages(memory[:, 0], memory[:, 1], table[:count]),) * config.num_layers for count in range(max_rows + 1)
        ]

    def decode(self, num_rows: int) -> None:
        """All rows decode."""
        self._step(num_rows, [], num_rows)

    def mixed(self, num_decoding: int, prompts: Sequence[int], *, samples: bool = True) -> None:
        """Prompts, beside rows that decode."""
        num_places = num_decoding + len(prompts)
        self._step(num_places if num_decoding else 0, prompts, num_places if samples else 0)

    def chunks(self, chunks: Sequence[Chunk]) -> None:
        """As rehearsed steps are."""
        if chunks[-1].decodes:
            self.decode(len(chunks))
        else:
            prompts = [chunk.num_tokens for chunk in chunks if not chunk.decodes]
            self.mixed(len(chunks) - len(prompts), prompts)

    def _step(self, num_first: int, prompts: Sequence[int], num_sampled: int) -> None:
        num_places, num_tokens = max(num_first, len(prompts)), num_first + sum(prompts)
        queries = None
        if prompts:
            starts, lengths = self._numbers(num_places + 1), self._numbers(num_places)
            queries = Queries(sum(prompts), starts, lengths, len(prompts))
        batch = PagedBatch(
            *(self._numbers(num_tokens, torch.int64), self._numbers(num_tokens), self._numbers(num_sampled)),
            *(self._numbers(num_tokens), self._numbers(num_first) if num_first else None, queries),
            self._pages[num_places],
        )
        with self._operations.step(batch), torch.inference_mode():
            self._model.forward(batch)

    def _numbers(self, count: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(count, dtype=dtype, device=_META)


@pytest.fixture
def asked(request: pytest.FixtureRequest) -> Iterator[Asked]:
    """What is asked for on a GPU of an architecture, the parameter, that launches nothing."""
    forget_kernels()
    with pytest.MonkeyPatch.context() as patch:
        yield install(patch, request.param)
    forget_kernels()
