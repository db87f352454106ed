"""Numbers on their way from the host to a device: what a step needs travels by one copy."""

from collections.abc import Sequence
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from headrace.errors import KernelError

# Kernels read vectors of so many bytes.
_ALIGNMENT = 16
_NUMPY = {torch.int32: np.int32, torch.int64: np.int64}


class Staging:
    """Page-locked memory, and its image on a device.

    ``begin``, ``put`` as often as needed, ``send``; what ``put`` gave holds until the next ``send``. The host waits for
    a copy only where as many as there are ``turns`` have not arrived.

    Args:
        num_bytes: room for one step's numbers, each ``put`` rounded up to 16 bytes.
        device: a GPU; on a CPU there is nothing to lock, and all else is the same.
        turns: pieces of page-locked memory.
    """

    def __init__(self, num_bytes: int, device: torch.device, turns: int = 1) -> None:
        on_gpu = device.type == "cuda"
        self._turns = cycle(
            [
                (
                    torch.empty(num_bytes, dtype=torch.uint8, pin_memory=on_gpu),
                    torch.cuda.Event() if on_gpu else None,  # type: ignore[no-untyped-call]
                )
                for _ in range(turns)
            ]
        )
        self._image = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        self._num_bytes = 0
        self._take_turn()

    def begin(self) -> None:
        """Forget what has been put, and take the next turn, once what it sent has arrived."""
        self._take_turn()
        if self._sent is not None:
            self._sent.synchronize()
        self._num_bytes = 0

    def put(self, values: Sequence[int] | np.ndarray, dtype: torch.dtype) -> Tensor:
        """Add numbers: an array where there are many, for it is copied as it is.

        Args:
            values: what fits the dtype.
            dtype: int32 or int64.

        Returns:
            ``[len(values)]`` on the device, valid once sent.

        Raises:
            KernelError: there is no room for them.
        """
        start, end = self._num_bytes, self._num_bytes + len(values) * dtype.itemsize
        if end > self._host.nbytes:
            raise KernelError(f"a step's numbers take more than the {self._host.nbytes} bytes kept for them")
        self._num_bytes = -(-end // _ALIGNMENT) * _ALIGNMENT
        # By numpy: a few numbers cost torch ten times what they cost it.
        self._bytes[start:end].view(_NUMPY[dtype])[:] = values
        return self._image[start:end].view(dtype)

    def send(self) -> None:
        """Copy everything to the device, on torch's current stream."""
        num_bytes = min(self._num_bytes, self._host.nbytes)
        self._image[:num_bytes].copy_(self._host[:num_bytes], non_blocking=True)
        if self._sent is not None:
            self._sent.record()

    def _take_turn(self) -> None:
        self._host, self._sent = next(self._turns)
        self._bytes: np.ndarray = self._host.numpy()
