"""Steps in which every row decodes, captured once and replayed: the host launches one graph instead of every kernel.

A graph is for a number of places, rounded up, so that few serve all; it is captured when such a step comes first. What
differs from step to step is read from where the step's numbers are staged, and from the tensors of rows: both stay
where they are. On Hopper and later, a kernel of ours begins before the one before it has ended
(``kernels/programmatic.py``).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.cuda_operations import PagedBatch
from headrace.kernels.launch import is_ours
from headrace.kernels.programmatic import make_programmatic

_FEW = (1, 2, 4, 8, 16, 24, 32, 48)
_STEP = 32


def padded_places(num_places: int, max_places: int) -> int:
    """Round a number of places up to one that graphs are captured for, at most ``max_places``."""
    padded = next((few for few in _FEW if few >= num_places), -(-num_places // _STEP) * _STEP)
    return min(padded, max_places)


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    logits: Tensor


class DecodeGraphs:
    """The graphs of one engine.

    Args:
        forward: computes a batch, all of whose numbers lie at the same addresses whenever it has as many places.
        keep: keeps the memory of a step's results, by numbers of tokens and of sampled ones, for good.
        stream: what everything is launched on.
    """

    def __init__(
        self,
        forward: Callable[[PagedBatch], Tensor | None],
        keep: Callable[[tuple[int, int]], None],
        stream: torch.cuda.Stream,
    ) -> None:
        self._forward = forward
        self._keep = keep
        self._stream = stream
        # Kernels for older GPUs have no instruction to wait by.
        self._starts_early = torch.cuda.get_device_capability(stream.device) >= (9, 0)
        self._captured: dict[int, _Captured] = {}

    def run(self, batch: PagedBatch) -> Tensor:
        """Compute a batch in which no row brings a prompt.

        Returns:
            Logits, ``[num_sampled, vocab]``, until the next step.
        """
        num_places = batch.token_ids.shape[0]
        captured = self._captured.get(num_places)
        if captured is None:
            captured = self._captured[num_places] = self._capture(batch)
        captured.graph.replay()
        return captured.logits

    def _capture(self, batch: PagedBatch) -> _Captured:
        # Launched one by one first: this compiles, and takes the memory that the graph is to keep.
        self._forward(batch)
        self._keep((batch.token_ids.shape[0], batch.sampled.shape[0]))
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            logits = self._forward(batch)
        if logits is None:
            raise ValueError("a step in which every row decodes has logits")
        if self._starts_early:
            make_programmatic(graph.raw_cuda_graph(), is_ours)
        graph.instantiate()
        return _Captured(graph, logits)
