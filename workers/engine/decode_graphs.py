"""Steps in which every row decodes, captured once and replayed: the host launches one graph instead of every kernel.

A graph is for a number of places, rounded up, so that few serve all, and for a kind of draws; it is captured when such
a step has come for the first time. It reads nothing but the tensors of rows, which stay where they are: a step for
which no row has come, gone or taken a page needs nothing of the host but its launch. On Hopper and later, a kernel of
ours begins before the one before it has ended (``kernels/programmatic.py``).
"""

from collections.abc import Callable, Hashable

import torch

from headrace.kernels.launch import is_ours
from headrace.kernels.programmatic import make_programmatic

_FEW = (1, 2, 4, 8, 16, 24, 32, 48)
_STEP = 32


def padded_places(num_places: int, max_places: int) -> int:
    """Round a number of places up to one that graphs are captured for, at most ``max_places``."""
    padded = next((few for few in _FEW if few >= num_places), -(-num_places // _STEP) * _STEP)
    return min(padded, max_places)


class DecodeGraphs:
    """The graphs of one engine.

    Args:
        stream: what everything is launched on.
        keep: lays a step's results out for good, by numbers of tokens and of sampled ones.

    Attributes:
        num_captures: so far.
        num_replays: so far.
    """

    def __init__(self, stream: torch.cuda.Stream, keep: Callable[[tuple[int, int]], None]) -> None:
        self._stream = stream
        self._keep = keep
        # Kernels for older GPUs have no instruction to wait by.
        self._starts_early = torch.cuda.get_device_capability(stream.device) >= (9, 0)
        self._graphs: dict[tuple[int, Hashable], torch.cuda.CUDAGraph] = {}
        self.num_captures = self.num_replays = 0

    def run(self, key: tuple[int, Hashable], launch: Callable[[], None]) -> None:
        """Launch a step's work, as a graph from the second time on.

        Args:
            key: number of places, and what else tells this work from others of as many: the same kernels on the same
                addresses whenever it comes.
            launch: launches it kernel by kernel.
        """
        graph = self._graphs.get(key)
        if graph is not None:
            self.num_replays += 1
            graph.replay()
            return
        self._keep((key[0], key[0]))
        # Launched one by one first: this compiles, and is the step wanted.
        launch()
        self.num_captures += 1
        self._graphs[key] = self._capture(launch)

    def _capture(self, launch: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            launch()
        if self._starts_early:
            make_programmatic(graph.raw_cuda_graph(), is_ours)
        graph.instantiate()
        return graph
