"""Steps with prompts of models that the GPU computes faster than the host launches them: captured and replayed.

Such a step is padded (``PaddedSize``): which rows its tokens belong to, and how long these are, lies on the device, so
that a graph serves every step of its size. A size is captured where launching one took the host longer than computing
it took the GPU; others gain nothing, and would lose what padding costs. A graph keeps no memory: it is good for as long
as the layout of its results is remembered, and captured anew when that is another one.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from headrace.kernels.launch import is_ours
from headrace.kernels.programmatic import make_programmatic
from headrace.workers.engine.padded_size import PaddedSize

#: Graphs are for up to so many tokens: more than a step has by default. A busy host takes longer to launch one of 8,192
#: tokens than the GPU takes to compute it, where the model is small.
MOST_TOKENS = 16384
# A step that waited for the host takes as long as its launch, and a little for the last kernels.
_TAIL = 1.25
# How long launches take at present is the median of so many; a few must be known, or one that was held up would count.
_MOST_LAUNCHES, _LEAST_LAUNCHES = 15, 3

# A capture takes as long as some launches, and is for nothing where more sizes come by turns than are kept: from then
# on each wants so many replays of those before it.
_LEAST_REPLAYS = 4

#: Tells a step's work from others: its size, and which draws are part of it.
Key = tuple[PaddedSize, Hashable]


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    results: Sequence[Tensor]  # where it writes
    logits: Tensor | None


class PromptGraphs:
    """The graphs of one engine.

    Args:
        stream: what everything is launched on.
        lay_out: gives the memory of a step's results, by numbers of tokens and of logits: what a step of such lengths
            is computed in, the same tensors as long as the layout is remembered.
        max_graphs: graphs that are kept, the ones used last.

    Attributes:
        num_captures: so far.
        num_replays: so far.
    """

    def __init__(
        self, stream: torch.cuda.Stream, lay_out: Callable[[tuple[int, int]], Sequence[Tensor]], max_graphs: int
    ) -> None:
        self._stream = stream
        self._lay_out = lay_out
        self._max_graphs = max_graphs
        # Kernels for older GPUs have no instruction to wait by.
        self._starts_early = torch.cuda.get_device_capability(stream.device) >= (9, 0)
        # One for all: only one runs at a time.
        self._pool = torch.cuda.graph_pool_handle()
        self._seen: set[PaddedSize] = set()
        self._waiting: OrderedDict[PaddedSize, None] = OrderedDict()  # sizes whose steps waited for the host
        self._captured: OrderedDict[Key, _Captured] = OrderedDict()  # the one used longest ago first
        self._launches_ms: deque[float] = deque(maxlen=_MOST_LAUNCHES)
        self.num_captures = self.num_replays = 0

    def serves(self, size: PaddedSize) -> bool:
        """Whether a step of this size is to be padded and ``run``."""
        return size in self._waiting

    def observe(self, size: PaddedSize, launch_ms: float, step_ms: float) -> None:
        """Learn from a step that was launched kernel by kernel.

        Args:
            size: that it would be padded to.
            launch_ms: what launching it took the host.
            step_ms: what it took the GPU, waiting for the host included.
        """
        if size not in self._seen:
            self._seen.add(size)  # it may have compiled, which says nothing
            return
        # Of all sizes: the host launches as many kernels for each, and a busy one takes longer than it once did.
        self._launches_ms.append(launch_ms)
        if len(self._launches_ms) < _LEAST_LAUNCHES or size.lengths[0] > MOST_TOKENS:
            return
        if step_ms < _TAIL * median(self._launches_ms):
            self._waiting[size] = None
            while len(self._waiting) > self._max_graphs:
                self._waiting.popitem(last=False)

    def run(self, key: Key, launch: Callable[[], Tensor | None]) -> Tensor | None:
        """Launch a step's work as a graph, captured when its key comes for the first time, if graphs have paid so far.

        Args:
            key: its size, and which draws are part of it: the same kernels on the same addresses whenever it comes.
            launch: launches it kernel by kernel, and gives its logits.

        Returns:
            The logits of this step; None where it has none.
        """
        results, captured = self._lay_out(key[0].lengths), self._captured.get(key)
        if captured is not None and captured.results is results:
            self._captured.move_to_end(key)
            self._waiting.move_to_end(key[0])
            self.num_replays += 1
            captured.graph.replay()
            return captured.logits
        # Launched one by one first: this compiles, and is the step wanted.
        logits = launch()
        if self.num_captures >= self._max_graphs and self.num_replays < _LEAST_REPLAYS * self.num_captures:
            return logits
        self.num_captures += 1
        self._captured[key] = self._capture(launch, results)
        self._captured.move_to_end(key)
        while len(self._captured) > self._max_graphs:
            self._captured.popitem(last=False)
        return logits

    def _capture(self, launch: Callable[[], Tensor | None], results: Sequence[Tensor]) -> _Captured:
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            logits = launch()
        if self._starts_early:
            make_programmatic(graph.raw_cuda_graph(), is_ours)
        graph.instantiate()
        return _Captured(graph, results, logits)
