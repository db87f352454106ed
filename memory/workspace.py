"""The bytes of a step's activations: chunks of memory, and tensors in them.

Where tensors lie is decided by ``planner``. What was laid out once is used again for a step of the same lengths, so
that in a steady state nothing is allocated and nothing is planned.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from headrace.memory.planner import Buffer, lay_out

# Layouts not used for so many steps are dropped, and with them the chunks that only they needed.
_MAX_IDLE_STEPS = 256


class Activation(Protocol):
    """One tensor of a step, from the operation that writes it to the last one that reads it."""

    @property
    def first_op(self) -> int:
        """Number of the operation that writes it."""

    @property
    def last_op(self) -> int:
        """Number of the last operation that reads it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""


@dataclass(slots=True)
class _Laid:
    tensors: tuple[torch.Tensor, ...]
    chunks: frozenset[int]
    last_step: int


class Workspace:
    """Chunks on one device.

    Args:
        device: where the chunks are.
        max_idle_steps: after how many steps without use a layout is dropped.
    """

    def __init__(self, device: torch.device | None = None, *, max_idle_steps: int = _MAX_IDLE_STEPS) -> None:
        self._device = device
        self._max_idle_steps = max_idle_steps
        self._chunks: dict[int, torch.Tensor] = {}
        self._laid: OrderedDict[Hashable, _Laid] = OrderedDict()  # the one used longest ago first
        self._num_chunks = 0
        self._step = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all chunks."""
        return sum(chunk.nbytes for chunk in self._chunks.values())

    def place(self, key: Hashable, activations: Callable[[], Sequence[Activation]]) -> tuple[torch.Tensor, ...]:
        """Begin a step: give its tensors memory, the same as the last time where the key was seen not long ago.

        Tensors of two keys may overlap: only one step is computed at a time.

        Args:
            key: of the step's lengths.
            activations: gives what must be laid out if the key is new.

        Returns:
            A tensor each, contiguous, not initialised.
        """
        self._step += 1
        self._drop_idle()
        laid = self._laid.get(key)
        if laid is None:
            laid = self._laid[key] = self._lay_out(activations())
            self._release()
        laid.last_step = self._step
        self._laid.move_to_end(key)
        return laid.tensors

    def _lay_out(self, activations: Sequence[Activation]) -> _Laid:
        numbers = list(self._chunks)
        buffers = [
            Buffer(each.first_op, each.last_op, math.prod(each.shape) * each.dtype.itemsize) for each in activations
        ]
        layout = lay_out(buffers, [self._chunks[number].nbytes for number in numbers])
        for num_bytes in layout.chunk_bytes[len(numbers) :]:
            self._num_chunks += 1
            numbers.append(self._num_chunks)
            self._chunks[self._num_chunks] = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        tensors = []
        for each, buffer, place in zip(activations, buffers, layout.places, strict=True):
            flat = self._chunks[numbers[place.chunk]][place.offset : place.offset + buffer.num_bytes]
            tensors.append(flat.view(each.dtype).view(each.shape))
        return _Laid(tuple(tensors), frozenset(numbers[place.chunk] for place in layout.places), self._step)

    def _drop_idle(self) -> None:
        dropped = False
        while self._laid:
            key, laid = next(iter(self._laid.items()))
            if self._step - laid.last_step <= self._max_idle_steps:
                break
            del self._laid[key]
            dropped = True
        if dropped:
            self._release()

    def _release(self) -> None:
        used = {chunk for laid in self._laid.values() for chunk in laid.chunks}
        for chunk in self._chunks.keys() - used:
            del self._chunks[chunk]
