"""An engine on a GPU, put together from its parts."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from headrace.errors import ConfigurationError
from headrace.kernels.cuda_operations import CudaOperations
from headrace.kernels.device import open_device
from headrace.kernels.device_memory import allocate, free_bytes
from headrace.kernels.fixed_operations import FixedOperations
from headrace.kernels.page_copy import copy_pages
from headrace.kernels.paged_batch import StepSizes
from headrace.kernels.planned import PlannedOperations
from headrace.kernels.table import Operations
from headrace.memory.budget import Budget, KVShape, Needs, available_bytes, fill
from headrace.memory.kv_cache import KVCache
from headrace.memory.pages import PageCopy, Pages
from headrace.memory.pool import Pool
from headrace.memory.workspace import bytes_of
from headrace.workers.engine.device_sampling import DeviceSampler
from headrace.workers.engine.device_steps import NUM_AHEAD, DeviceSteps
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.loading import LoadedModel
from headrace.workers.engine.padded_size import TOKEN_STEP
from headrace.workers.engine.room import Room
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.runner import Runner
from headrace.workers.engine.settings import DEFAULT_PAGE_SIZE
from headrace.workers.engine.warm_up import (
    WARM_UP_PAGES,
    WARM_UP_PROMPT_TOKENS,
    WARM_UP_ROWS,
    WARM_UP_TOKENS,
    rehearsed_steps,
    warm_up,
    warm_up_prompt,
)

logger = logging.getLogger(__name__)

# What cuBLAS and the driver take for themselves once they are used.
_RESERVE_BYTES = 512 << 20
# What attention keeps from step to step.
_WORKSPACE_BYTES = 128 << 20


#: Brings a model for a table of operations, in a dtype.
LoadModel = Callable[[Operations, torch.dtype], LoadedModel]


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What an engine on a GPU may come to need.

    Attributes:
        max_rows: rows in flight at once.
        row_tokens: tokens of a row at most, prompt and output; the model's own limit binds too.
        step_tokens: tokens computed in one step at most, >= ``max_rows``.
        kv_tokens: tokens that the key-value memory holds at most; None: as many as there is memory for.
        memory_fraction: of the memory that was free before the model came, in (0, 1].
        table_fraction: of the same, what a table of the first layer's queries, keys and values of all tokens may take;
            in [0, 1), and 0: every step computes them.
        page_size: tokens of a page.
        cuda_graphs: steps in which every row decodes are captured and replayed.
        prompt_graphs: graphs of steps with prompts that are kept, where launching takes longer than computing; with
            ``cuda_graphs`` only, and 0: none.
        deterministic: a row's tokens do not depend on the rows beside it; not in fp32.
        stall_ms: what a step may take in which rows decode; 0: as long as ``step_tokens`` take.
        prompt_step_ms: what a step may take in which none does; 0: likewise.
        overtaking_rows: rows that may begin before one that came earlier, because they ask for more; see ``Waiting``.
        rehearses: have the kernels of steps of all sizes ready at the start; else a request waits for each that is new.
    """

    max_rows: int
    row_tokens: int
    step_tokens: int
    kv_tokens: int | None = None
    memory_fraction: float = 0.9
    table_fraction: float = 0.02
    page_size: int = DEFAULT_PAGE_SIZE
    cuda_graphs: bool = True
    prompt_graphs: int = 0
    deterministic: bool = False
    stall_ms: float = 0.0
    prompt_step_ms: float = 0.0
    overtaking_rows: int = 0
    rehearses: bool = True


class DeviceEngine:
    """An engine on a GPU.

    It finds out by small steps what steps need, and gives the pool what the GPU has left. What steps of any size use is
    compiled before, side by side, so that no request waits for the compiler.

    Args:
        load: brings the model for a table of operations, as ``loading.load`` does from a folder.
        device: a GPU; without an index, torch's current one.
        dtype: of weights, activations, keys and values: fp32, bf16 or fp16.
        limits: what must fit.

    Attributes:
        device: the GPU, with its index.
        loaded: the model.
        operations: what it is written over.
        pool: memory of everything but the weights.
        steps: where rows are computed.
        engine: to be run.

    Raises:
        ConfigurationError: no such GPU, no PyCUDA or compiler, or too little memory.
        KernelError: no kernel is written for the model's heads or the page size.
        ModelError: the model cannot be served.
    """

    def __init__(self, load: LoadModel, device: torch.device, dtype: torch.dtype, limits: DeviceLimits) -> None:
        if not torch.cuda.is_available():
            raise ConfigurationError("no GPU: torch finds no CUDA device; see `headrace doctor`, or use --device cpu")
        if limits.deterministic and dtype not in (torch.bfloat16, torch.float16):
            raise ConfigurationError(f"deterministic needs bfloat16 or float16, not {dtype}")
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        opened = open_device(self.device.index)
        self._stream = opened.new_stream()
        self._limits = limits
        torch.cuda.set_device(self.device)
        with torch.cuda.stream(self._stream), torch.inference_mode():
            before = free_bytes(self.device.index)
            make = FixedOperations if limits.deterministic else CudaOperations
            on_device = make(self.device, int(limits.table_fraction * before))
            self.operations = PlannedOperations(on_device)
            self.loaded = load(self.operations, dtype)
            weight_bytes = before - free_bytes(self.device.index)
            config = self.loaded.model.config
            self._shape = KVShape(
                config.num_layers, config.num_kv_heads, config.head_dim, limits.page_size, dtype.itemsize
            )
            self._sizes = StepSizes(WARM_UP_ROWS, WARM_UP_PAGES, WARM_UP_TOKENS)
            on_device.reserve(self._sizes)
            cache = self._cache(WARM_UP_ROWS * WARM_UP_PAGES)
            with opened.rehearsing():
                warm_up(self._steps_on(cache))
            warm_up(self._steps_on(cache))
            del cache  # or its memory would be missing below
            self._row_tokens = min(limits.row_tokens, config.max_positions)
            # A token of every place, a budget's worth of chunks, and what rounding these up adds.
            max_tokens = limits.max_rows + limits.step_tokens + TOKEN_STEP
            self._sizes = StepSizes(limits.max_rows, self._shape.pages_for(self._row_tokens), max_tokens)
            budget = self._budget(free_bytes(self.device.index), weight_bytes)
            storage = allocate(self.device.index, budget.num_bytes)
            self.pool = Pool(storage, budget, self._shape, dtype, order="heads", copy_pages=copy_pages)
            self.operations.place_in(self.pool.workspace.place)
            on_device.reserve(self._sizes, self.pool.workspace_for_good)
            self.steps = self._steps_on(
                self.pool.kv_cache,
                self.pool.workspace_for_good,
                self._keep if limits.cuda_graphs else None,
                limits.prompt_graphs,
            )
        self.engine = self._engine_of(self.steps, self.pool.pages, budget.kv_tokens)
        with torch.inference_mode():
            if limits.rehearses:
                self._rehearse()
            self._warm_up_prompt()
        logger.info(
            "%s: %.1f GiB of weights, %.1f GiB of pool, room for %d tokens of keys and values",
            torch.cuda.get_device_name(self.device),
            weight_bytes / 2**30,
            budget.num_bytes / 2**30,
            budget.kv_tokens,
        )

    def scratch(self, kv_tokens: int) -> Engine:
        """Make one more engine over the same model, with key-value memory of its own beside the pool.

        Only one of the two may compute at a time: they share the memory of a step's results.

        Args:
            kv_tokens: tokens that its memory holds, rounded up to whole pages.
        """
        pages = Pages(self._shape.pages_for(kv_tokens), self._limits.page_size)
        with torch.cuda.stream(self._stream), torch.inference_mode():
            return self._engine_of(self._steps_on(self._cache(pages.num_pages)), pages, kv_tokens)

    def _rehearse(self) -> None:
        """Have all kernels ready that steps of other sizes than the first ones use."""
        limits = self._limits
        sizes = limits.max_rows, limits.step_tokens, self._row_tokens, self._shape.page_size
        with torch.cuda.stream(self._stream), open_device(self.device.index).rehearsing():
            steps = self.steps.apart()
            for chunks in rehearsed_steps(*sizes):
                # Where one decodes, each place has a token beside those of prompts.
                lengths = sum(chunk.num_tokens for chunk in chunks) + len(chunks), len(chunks)
                if self.pool.make_room(lengths, partial(self.operations.results, *lengths)):
                    steps.compute(chunks)
            steps.copy((PageCopy(0, 1, 1),))
        self.pool.workspace.release()

    def _warm_up_prompt(self) -> None:
        """Let no user wait for what the first long prompt sets up, and tell the engine what such a step takes."""
        num_tokens = min(WARM_UP_PROMPT_TOKENS, self._row_tokens, self._limits.step_tokens)
        lengths = num_tokens, 1
        if self.pool.make_room(lengths, partial(self.operations.results, *lengths)):
            self.engine.learn(num_tokens, warm_up_prompt(self.steps, self.pool.pages, num_tokens))
            self.pool.workspace.release()

    def _keep(self, lengths: tuple[int, int]) -> None:
        """Lay the results of a step of such lengths out for good."""
        self.pool.workspace.keep(lengths, partial(self.operations.results, *lengths))

    def _steps_on(
        self,
        kv_cache: KVCache,
        memory: Callable[[int], torch.Tensor] | None = None,
        keep: Callable[[tuple[int, int]], None] | None = None,
        prompt_graphs: int = 0,
    ) -> DeviceSteps:
        sizes, vocab_size = self._sizes, self.loaded.model.config.vocab_size
        rows = RowState(sizes.max_rows, sizes.max_pages, self.device)
        max_tokens = sizes.max_pages * self._limits.page_size
        sampler = DeviceSampler(rows, vocab_size, max_tokens, memory, NUM_AHEAD + 1)
        return DeviceSteps(
            self.loaded.model,
            kv_cache,
            self.operations,
            rows,
            sampler,
            stream=self._stream,
            max_tokens=sizes.max_tokens,
            keep=keep,
            prompt_graphs=prompt_graphs,
            launching=open_device(self.device.index).launching_early,
        )

    def _engine_of(self, steps: DeviceSteps, pages: Pages, kv_tokens: int) -> Engine:
        return Engine(
            self.loaded,
            Runner(steps),
            pages,
            max_rows=self._limits.max_rows,
            step_tokens=self._limits.step_tokens,
            kv_tokens=kv_tokens,
            stall_ms=self._limits.stall_ms,
            prompt_step_ms=self._limits.prompt_step_ms,
            overtaking_rows=self._limits.overtaking_rows,
            row_tokens=min(self._row_tokens, kv_tokens),
            room=Room(
                self.pool,
                self.operations,
                self._limits.max_rows,
                partial(torch.cuda.stream, self._stream),
                num_padding=TOKEN_STEP,
            ),
        )

    def _cache(self, num_pages: int) -> KVCache:
        shape = self._shape
        return KVCache(
            num_layers=shape.num_layers,
            num_pages=num_pages,
            page_size=shape.page_size,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype=self.loaded.model.dtype,
            order="heads",
            storage=torch.empty(num_pages * shape.page_bytes, dtype=torch.uint8, device=self.device),
            copy_pages=copy_pages,
        )

    def _budget(self, num_free: int, weight_bytes: int) -> Budget:
        limits, max_tokens = self._limits, self._sizes.max_tokens
        for_good = _WORKSPACE_BYTES + DeviceSampler.num_bytes(limits.max_rows, self.loaded.model.config.vocab_size)
        longest = bytes_of(self.operations.results(max_tokens, limits.max_rows)) + for_good
        least = bytes_of(self.operations.results(limits.max_rows + 1 + TOKEN_STEP, 1)) + for_good
        available = available_bytes(num_free, weight_bytes, limits.memory_fraction, _RESERVE_BYTES)
        return fill(self._shape, Needs(self._row_tokens, longest, least), available, limits.kv_tokens)
