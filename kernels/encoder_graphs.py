"""Forward passes of small batches, captured as CUDA graphs and replayed: the host launches a graph, not every kernel.

A graph is for a padded size (``cuda_encoder_batch``). It is captured when a batch of that size comes for the second
time: a size that comes once is not worth it. Then the graph and the plain launches are measured against each other,
wall time of both, and the faster way is taken from then on. On Hopper and later, a kernel of ours in a graph begins
before the one before it has ended (``kernels/programmatic.py``).
"""

import statistics
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.cuda_encoder_batch import CudaEncoderBatch, PaddedSize, image_like
from headrace.kernels.device import open_device
from headrace.kernels.launch import is_ours
from headrace.kernels.programmatic import make_programmatic

Forward = Callable[[CudaEncoderBatch], Tensor]

#: Prepares a pass over a batch whose numbers stay where they are: one that writes to the same addresses whenever it is
#: called, and owns what lies there.
Fix = Callable[[CudaEncoderBatch], Callable[[], Tensor]]

_RUNS = 3


@dataclass(frozen=True, slots=True)
class WayCosts:
    """What a batch of one size takes by either way, in milliseconds of wall time."""

    graph_ms: float
    launches_ms: float


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    batch: CudaEncoderBatch
    compute: Callable[[], Tensor]
    result: Tensor


class EncoderGraphs:
    """The graphs of one model on one GPU. One thread at a time: a graph's numbers and results lie at fixed addresses.

    Args:
        launch: computes a batch launch by launch.
        fix: prepares what is captured. Results of one graph may lie where another's do.
        device: a GPU, with its index.
        max_graphs: how many are kept, those used last.

    Attributes:
        max_graphs: the same; may be changed.
    """

    def __init__(self, launch: Forward, fix: Fix, device: torch.device, max_graphs: int) -> None:
        self._launch = launch
        self._fix = fix
        self._stream = open_device(device.index).new_stream()
        # Kernels for older GPUs have no instruction to wait by.
        self._starts_early = torch.cuda.get_device_capability(device) >= (9, 0)
        self.max_graphs = max_graphs
        # One for all, of what libraries ask for: graphs never run at the same time.
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: OrderedDict[PaddedSize, _Captured] = OrderedDict()
        self._seen: set[PaddedSize] = set()
        self._costs: dict[PaddedSize, WayCosts] = {}

    @property
    def costs(self) -> dict[PaddedSize, WayCosts]:
        """What was measured, by size."""
        return dict(self._costs)

    def wants(self, size: PaddedSize) -> bool:
        """Whether a batch of that size is to be replayed; its first one is not."""
        if size not in self._seen:
            self._seen.add(size)
            return False
        costs = self._costs.get(size)
        return costs is None or costs.graph_ms < costs.launches_ms

    def run(self, batch: CudaEncoderBatch) -> Tensor:
        """Compute a padded batch on torch's current stream: ``[num_tokens, hidden]``, a tensor of its own."""
        size = batch.padded
        assert size is not None, "only padded batches have graphs"
        captured = self._captured.get(size)
        if captured is None:
            captured = self._captured[size] = self._capture(batch)
            while len(self._captured) > self.max_graphs:
                self._captured.popitem(last=False)
        self._captured.move_to_end(size)
        if size not in self._costs:
            self._costs[size] = self._measure(captured, batch)
        return _replay(captured, batch)

    def _capture(self, batch: CudaEncoderBatch) -> _Captured:
        current = torch.cuda.current_stream(self._stream.device)
        with torch.inference_mode(mode=False), torch.no_grad():
            fixed = image_like(batch)
            compute = self._fix(fixed)
            # Launched one by one first: this compiles, and lets libraries take what they want to keep.
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                compute()
            graph = torch.cuda.CUDAGraph(keep_graph=True)
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = compute()
        if self._starts_early:
            make_programmatic(graph.raw_cuda_graph(), is_ours)
        graph.instantiate()
        current.wait_stream(self._stream)
        return _Captured(graph, fixed, compute, result)

    def _measure(self, captured: _Captured, batch: CudaEncoderBatch) -> WayCosts:
        return WayCosts(
            graph_ms=_wall_ms(lambda: _replay(captured, batch)),
            launches_ms=_wall_ms(lambda: self._launch(batch)),
        )


def _replay(captured: _Captured, batch: CudaEncoderBatch) -> Tensor:
    captured.batch.image.copy_(batch.image)
    captured.graph.replay()
    return captured.result[: batch.token_ids.shape[0]].clone()


def _wall_ms(run: Callable[[], object]) -> float:
    """Median time from the call to the result, the host's work included: what a request waits for."""
    times = []
    for _ in range(_RUNS):
        torch.cuda.synchronize()
        begin_s = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begin_s) * 1000)
    return statistics.median(times)
