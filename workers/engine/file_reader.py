"""Bytes of files into a GPU's memory at the speed of its bus.

A copy from memory that is not page-locked goes through one buffer of the driver's, a copy at a time. Here several
threads read pieces of a file, each into page-locked memory of its own, and queue their copies while they read the next
piece. (Measured on one H200, 6.4 GB in the page cache: 5.2 GB/s by mapping the file, 15.7 by 4 threads, 27.4 by 8.)
"""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

_NUM_THREADS = 8
_PIECE_BYTES = 8 << 20
_TURNS = 2


@dataclass(frozen=True, slots=True)
class _Lane:
    """What one thread copies by: its stream, and page-locked buffers with the ends of their last copies, by turns."""

    stream: torch.cuda.Stream
    turns: Iterator[tuple[Tensor, torch.cuda.Event]]


class FileReader:
    """Reads for one GPU; a context manager, which waits for its last copies.

    Args:
        device: the GPU, with its index.
        num_threads: that read.
        piece_bytes: that a thread reads at once.
    """

    def __init__(self, device: torch.device, num_threads: int = _NUM_THREADS, piece_bytes: int = _PIECE_BYTES) -> None:
        self._device = device
        self._piece_bytes = piece_bytes
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(num_threads, "headrace-read")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        # Page-locked memory may be given back only when nothing is copied from it any more.
        torch.cuda.synchronize(self._device)

    def read(self, file: int, offset: int, target: Tensor) -> None:
        """Bring bytes of a file to the GPU; they are there for what is launched on the current stream afterwards.

        Args:
            file: its descriptor.
            offset: of the first byte.
            target: uint8 ``[num_bytes]``, contiguous, on the GPU.

        Raises:
            OSError: the file cannot be read, or ends before its last byte.
        """
        current = torch.cuda.current_stream(self._device)
        # What used the target's memory before was launched on this stream.
        free = torch.cuda.Event()  # type: ignore[no-untyped-call]
        free.record(current)
        pieces: list[Future[torch.cuda.Event]] = [
            self._pool.submit(self._copy, file, offset + start, target[start : start + self._piece_bytes], free)
            for start in range(0, len(target), self._piece_bytes)
        ]
        for piece in pieces:
            current.wait_event(piece.result())

    def _copy(self, file: int, offset: int, target: Tensor, free: torch.cuda.Event) -> torch.cuda.Event:
        lane = self._lane()
        buffer, copied = next(lane.turns)
        copied.synchronize()
        read_fully(file, offset, buffer.numpy().data[: len(target)])
        # The target may belong to a thread that infers, and is written from this one.
        with torch.inference_mode(), torch.cuda.stream(lane.stream):
            lane.stream.wait_event(free)
            target.copy_(buffer[: len(target)], non_blocking=True)
            copied.record()
        return copied

    def _lane(self) -> _Lane:
        lane: _Lane | None = getattr(self._local, "lane", None)
        if lane is None:
            turns = [
                (torch.empty(self._piece_bytes, dtype=torch.uint8, pin_memory=True), torch.cuda.Event())  # type: ignore[no-untyped-call]
                for _ in range(_TURNS)
            ]
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            lane = self._local.lane = _Lane(stream, cycle(turns))
        return lane


def read_fully(file: int, offset: int, into: memoryview) -> None:
    """Fill memory with bytes of a file.

    Raises:
        OSError: the file cannot be read, or ends too soon.
    """
    while into:
        count = os.preadv(file, [into], offset)
        if not count:
            raise OSError(f"the file ends {len(into)} bytes too soon")
        into, offset = into[count:], offset + count
