"""How long the device takes for one of many launches that follow each other in a graph: no host in the time.

For what a step runs a hundred times: unlike ``gpu_timing`` it counts the gap to the next launch, and it can make the
launches dependent in the way in which an engine's graph does.
"""

import statistics
from collections.abc import Callable, Sequence

import torch

from headrace.kernels.device import open_device
from headrace.kernels.launch import is_ours
from headrace.kernels.programmatic import make_programmatic

_LEAST_US = 3000.0

Operation = Callable[[], object]


class GraphTimer:
    """Times operations in turn, each in a graph of its own that repeats it over different memory.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = open_device(device.index or 0).new_stream()

    def medians_us(
        self, operations: Sequence[Sequence[Operation]], repetitions: int = 5, *, programmatic: bool = False
    ) -> list[float]:
        """Median time of one launch of each operation, in microseconds.

        Args:
            operations: each as one callable for every copy of its data; together the copies are larger than the cache.
            repetitions: replays of each graph.
            programmatic: whether kernels of ours may begin before the one before them has ended.
        """
        graphs = [self._capture(copies, programmatic) for copies in operations]
        times: list[list[float]] = [[] for _ in graphs]
        for repetition in range(repetitions + 1):
            for (graph, count), taken in zip(graphs, times, strict=True):
                time_us = self._replay_us(graph) / count
                if repetition:
                    taken.append(time_us)
        return [statistics.median(taken) for taken in times]

    def read_gb_per_s(self, num_bytes: int = 4 << 30) -> float:
        """What the card reads: the greatest of random numbers is looked for, each read once."""
        with torch.cuda.stream(self._stream):
            numbers = torch.randn(num_bytes // 4, device=self._stream.device)
        (time_us,) = self.medians_us([[numbers.amax]])
        return numbers.nbytes / time_us / 1e3

    def _capture(self, copies: Sequence[Operation], programmatic: bool) -> tuple[torch.cuda.CUDAGraph, int]:
        with torch.cuda.stream(self._stream):
            for operation in copies[:2]:
                operation()
            begin, end = _event(), _event()
            begin.record(self._stream)
            copies[-1]()
            end.record(self._stream)
        torch.cuda.synchronize()
        count = max(len(copies), int(_LEAST_US / max(begin.elapsed_time(end) * 1e3, 3.0)) + 1)
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, stream=self._stream):
            for index in range(count):
                copies[index % len(copies)]()
        if programmatic:
            make_programmatic(graph.raw_cuda_graph(), is_ours)
        graph.instantiate()
        return graph, count

    def _replay_us(self, graph: torch.cuda.CUDAGraph) -> float:
        begin, end = _event(), _event()
        with torch.cuda.stream(self._stream):
            begin.record(self._stream)
            graph.replay()
            end.record(self._stream)
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) * 1e3


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event
