"""How a forward pass is run, packed or as a captured graph of a padded size, and where its results lie.

One interface for all of it, a call with a batch. Which way a batch goes is measured (``kernels/encoder_graphs.py``).
"""

import threading
from collections.abc import Callable
from typing import Final, Literal

import torch
from torch import Tensor

from headrace.errors import ConfigurationError
from headrace.kernels.cuda_encoder_batch import CudaEncoderBatch, PaddedSize
from headrace.kernels.encoder_graphs import EncoderGraphs, WayCosts
from headrace.kernels.encoder_table import EncoderBatch, EncoderOperations
from headrace.kernels.planned_encoder import EncoderTrace, PlannedEncoder
from headrace.memory.token_arena import TokenArena, TokenResult

Forward = Callable[[EncoderBatch], Tensor]

Allocator = Literal["planned", "torch"]
"""Who says where a pass's results lie: a layout by lifetimes, or torch's own allocator, one by one."""

#: Graphs that a model keeps where nothing else is said: one of every size there is.
MAX_GRAPHS: Final = 336


class PlainRuntime:
    """Computes as it is told; torch says where results lie.

    Args:
        forward: the pass.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward

    @property
    def allocator(self) -> Allocator:
        """Torch's; setting another one raises ConfigurationError."""
        return "torch"

    @allocator.setter
    def allocator(self, allocator: Allocator) -> None:
        if allocator != "torch":
            raise ConfigurationError(
                "results are planned on a GPU only: on a CPU products insist on memory of their own"
            )

    def __call__(self, batch: EncoderBatch) -> Tensor:
        """Compute a batch: ``[num_tokens, hidden]``."""
        return self._forward(batch)


class DeviceRuntime:
    """The ways on a GPU.

    Several threads may call it. One of them at a time queues its kernels, which takes less than running them does; the
    memory of results is one for all, and a pass on another stream waits for the one before it.

    Args:
        forward: the pass, over ``operations``.
        operations: the table.
        device: a GPU, with its index.

    Attributes:
        allocator: may be changed at any time: what a pass gives back has memory of its own.
        uses_graphs: whether small batches may be captured.
    """

    def __init__(self, forward: Forward, operations: PlannedEncoder, device: torch.device) -> None:
        self.allocator: Allocator = "planned"
        self.uses_graphs = True
        self._forward = forward
        self._operations = operations
        self._device = device
        self._lock = threading.Lock()
        self._planned: tuple[EncoderTrace, TokenArena] | None = None
        self._graphs_arena: TokenArena | None = None
        self._graphs_result = torch.empty(0, 0)
        self._graphs = EncoderGraphs(self._launch, self._fix, device, MAX_GRAPHS)
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]

    @property
    def max_graphs(self) -> int:
        """Graphs that are kept at most, those used last; may be changed at any time."""
        return self._graphs.max_graphs

    @max_graphs.setter
    def max_graphs(self, number: int) -> None:
        self._graphs.max_graphs = number

    @property
    def costs(self) -> dict[PaddedSize, WayCosts]:
        """What batches of each padded size were measured to take by either way."""
        return self._graphs.costs

    @property
    def arena(self) -> TokenArena:
        """Where results of passes lie that are launched one by one."""
        with self._lock:
            return self._plan()[1]

    def __call__(self, batch: EncoderBatch) -> Tensor:
        """Compute a batch: ``[num_tokens, hidden]``, a tensor of its own."""
        with self._lock, torch.cuda.device(self._device):
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(self._done)
            if (
                self.uses_graphs
                and isinstance(batch, CudaEncoderBatch)
                and batch.padded is not None
                and self._graphs.wants(batch.padded)
            ):
                result = self._graphs.run(batch)
            else:
                result = self._launch(batch)
            stream.record_event(self._done)
        return result

    def _launch(self, batch: EncoderBatch) -> Tensor:
        if self.allocator == "torch":
            return self._forward(batch)
        trace, arena = self._plan()
        with self._operations.placed(trace, arena.place(batch.token_ids.shape[0])):
            return self._forward(batch)

    def _fix(self, batch: EncoderBatch) -> Callable[[], Tensor]:
        """Prepare a pass to be captured; all graphs write into the same memory.

        It grows by octaves: a graph that was captured before keeps what it writes to, and all that is kept is less than
        twice what the largest one takes.
        """
        trace, _ = self._plan()
        assert trace.given is not None, "on a GPU every operation writes where it is told"
        if self._graphs_arena is None:
            self._graphs_arena = TokenArena(_results(trace), self._device)
        num_tokens = batch.token_ids.shape[0]
        octave = 1 << (num_tokens - 1).bit_length()
        if self._graphs_result.shape[0] < octave:
            self._graphs_arena.place(octave)
            with torch.inference_mode(mode=False):
                self._graphs_result = torch.empty(
                    octave, trace.given.width, dtype=trace.given.dtype, device=self._device
                )
        memory, result = self._graphs_arena.place(num_tokens), self._graphs_result[:num_tokens]

        def compute() -> Tensor:
            with self._operations.placed(trace, memory, result):
                return self._forward(batch)

        return compute

    def _plan(self) -> tuple[EncoderTrace, TokenArena]:
        """Trace a pass of one token, the first time: all passes are alike."""
        if self._planned is None:
            nothing = torch.zeros(1, dtype=torch.int64)
            with torch.no_grad(), self._operations.traced() as trace:
                trace.close(self._forward(self._operations.pack(nothing, nothing, None, [1])))
            self._planned = trace, TokenArena(_results(trace), self._device)
        return self._planned


def _results(trace: EncoderTrace) -> list[TokenResult]:
    return [TokenResult(each.first_op, each.last_op, each.width, each.dtype) for each in trace.written]


Runtime = PlainRuntime | DeviceRuntime


def runtime_for(operations: EncoderOperations, forward: Forward) -> Runtime:
    """Choose how passes over a table are run."""
    if isinstance(operations, PlannedEncoder) and operations.device.type == "cuda":
        return DeviceRuntime(forward, operations, operations.device)
    return PlainRuntime(forward)
