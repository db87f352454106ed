"""The bytes of a step's activations: blocks of memory, and tensors in them.

Where tensors lie is decided by ``planner``. What was laid out once is used again for a step of the same lengths, so
that in a steady state nothing is allocated and nothing is planned.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from headrace.errors import OutOfMemoryError
from headrace.memory.planner import Buffer, Place, lay_out, spacious_bytes

# Layouts not used for so many steps are dropped, and with them the blocks that only they needed.
_MAX_IDLE_STEPS = 256
# Of these steps, in how many it is looked for such layouts.
_DROPS = 16


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


class Blocks(Protocol):
    """Where a workspace has its memory from."""

    def size(self, num_bytes: int) -> int:
        """Bytes of the block that ``take`` would give for so many."""

    def take(self, sizes: Sequence[int]) -> list[torch.Tensor] | None:
        """Give blocks of these sizes, uint8; None, and nothing is taken, where there is no room for all."""

    def shrink(self, block: torch.Tensor, num_bytes: int) -> torch.Tensor | None:
        """Take back what can be taken of a block but its first ``num_bytes``; what is left, or None if nothing is."""


class OwnBlocks:
    """Blocks that torch allocates one by one.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device

    def size(self, num_bytes: int) -> int:
        """See ``Blocks``."""
        return spacious_bytes(num_bytes)

    def take(self, sizes: Sequence[int]) -> list[torch.Tensor]:
        """See ``Blocks``."""
        return [torch.empty(size, dtype=torch.uint8, device=self._device) for size in sizes]

    def shrink(self, block: torch.Tensor, num_bytes: int) -> torch.Tensor | None:
        """Keep the block, or let go of it: torch frees what nobody refers to."""
        return block if num_bytes else None


@dataclass(frozen=True, slots=True)
class _Laid:
    """Buffers, and where each lies: in which block, by number, and at which offset.

    Attributes:
        ends: how many bytes of which block they take, by its number. They are summed up once: hundreds of layouts are
            remembered, and blocks are looked through each time that one of them is dropped.
    """

    buffers: tuple[Buffer, ...]
    places: tuple[Place, ...]
    ends: Mapping[int, int]

    @classmethod
    def of(cls, buffers: tuple[Buffer, ...], places: tuple[Place, ...]) -> "_Laid":
        """Lay buffers at places."""
        ends: dict[int, int] = {}
        for place, buffer in zip(places, buffers, strict=True):
            ends[place.chunk] = max(ends.get(place.chunk, 0), place.offset + buffer.num_bytes)
        return cls(buffers, places, ends)

    def holds(self, buffers: Sequence[Buffer]) -> bool:
        """Whether buffers of shorter lengths could lie in the same places."""
        return len(buffers) == len(self.buffers) and all(
            (small.first_op, small.last_op) == (large.first_op, large.last_op) and small.num_bytes <= large.num_bytes
            for small, large in zip(buffers, self.buffers, strict=True)
        )


@dataclass(slots=True)
class _Placed:
    laid: _Laid
    tensors: tuple[torch.Tensor, ...]
    last_step: int


class Workspace:
    """Memory of steps on one device; only one step is computed at a time, so all of them overlap.

    Args:
        blocks: where memory comes from; default: torch's own for the CPU.
        max_idle_steps: after how many steps without use a layout is dropped.
    """

    def __init__(self, blocks: Blocks | None = None, *, max_idle_steps: int = _MAX_IDLE_STEPS) -> None:
        self._source: Blocks = OwnBlocks() if blocks is None else blocks
        self._max_idle_steps = max_idle_steps
        self._blocks: dict[int, torch.Tensor] = {}  # by number
        self._num_blocks = 0
        self._placed: OrderedDict[Hashable, _Placed] = OrderedDict()  # the one used longest ago first
        self._prepared: OrderedDict[Hashable, _Placed] = OrderedDict()  # without tensors
        self._kept: dict[Hashable, _Placed] = {}
        self._step = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all blocks."""
        return sum(block.nbytes for block in self._blocks.values())

    def prepare(self, key: Hashable, activations: Callable[[], Sequence[Activation]]) -> tuple[int, ...]:
        """Take memory for the next step, if there is enough: then ``place`` succeeds for these or shorter lengths.

        Args:
            key: of the greatest lengths that the next step may have.
            activations: gives what must be laid out for them if the key is new.

        Returns:
            Bytes of the blocks for which there is no room; none: all is well. What only other lengths needed has then
            been given back.
        """
        if key in self._kept:
            return ()
        prepared = self._prepared.get(key)
        if prepared is None:
            buffers = _buffers(activations())
            laid = self._lay_out(buffers)
            if not isinstance(laid, _Laid):
                self.release()
                laid = self._lay_out(buffers)
            if not isinstance(laid, _Laid):
                return laid
            prepared = self._prepared[key] = _Placed(laid, (), self._step)
        prepared.last_step = self._step
        self._prepared.move_to_end(key)
        return ()

    def place(self, key: Hashable, activations: Callable[[], Sequence[Activation]]) -> tuple[torch.Tensor, ...]:
        """Begin a step: give its tensors memory, the same as the last time where the key was seen not long ago.

        Args:
            key: of the step's lengths.
            activations: gives what must be laid out if the key is new.

        Returns:
            A tensor each, contiguous, not initialised.

        Raises:
            OutOfMemoryError: there is no room; never after a ``prepare`` of these or greater lengths that succeeded.
        """
        self._step += 1
        self._drop_idle()
        kept = self._kept.get(key)
        if kept is not None:
            return kept.tensors
        placed = self._placed.get(key)
        if placed is None:
            placed = self._placed[key] = self._place(activations())
        placed.last_step = self._step
        self._placed.move_to_end(key)
        return placed.tensors

    def release(self) -> None:
        """Give back everything but what is kept for good; the next step is laid out anew."""
        self._placed.clear()
        self._prepared.clear()
        self._release()

    def keep(self, key: Hashable, activations: Callable[[], Sequence[Activation]]) -> None:
        """Lay a step out for good, as a captured graph wants it; once more is no error.

        Args:
            key: of the step's lengths, for which ``place`` gives the same tensors from now on.
            activations: gives what must be laid out.

        Raises:
            OutOfMemoryError: there is no room, as in ``place``.
        """
        if key not in self._kept:
            self._kept[key] = self._place(activations(), closely=True)
            self._placed.pop(key, None)

    def _place(self, activations: Sequence[Activation], *, closely: bool = False) -> _Placed:
        buffers = _buffers(activations)
        # Where the greater lengths lie that a step was prepared for, its own can: most steps with prompts have lengths
        # that no step has had before, and laying them out takes as long as launching them.
        laid = None if closely else self._as_prepared(buffers)
        if laid is None:
            made = self._lay_out(buffers)
            # The gaps may be other ones for shorter lengths.
            laid = made if isinstance(made, _Laid) else self._as_prepared(buffers)
            if laid is None:
                raise OutOfMemoryError(f"a step's results want blocks of {made} bytes, and there is no room for them")
        return _Placed(laid, self._tensors(activations, laid), self._step)

    def _as_prepared(self, buffers: tuple[Buffer, ...]) -> _Laid | None:
        """Place buffers where those of greater lengths lie, if such have been prepared."""
        greater = (each.laid for each in reversed(self._prepared.values()) if each.laid.holds(buffers))
        found = next(greater, None)
        return None if found is None else _Laid.of(buffers, found.places)

    def _tensors(self, activations: Sequence[Activation], laid: _Laid) -> tuple[torch.Tensor, ...]:
        """Make them; what layers write in the same place and shape is one tensor, for each view takes its time."""
        made: dict[Hashable, torch.Tensor] = {}
        tensors = []
        for each, buffer, place in zip(activations, laid.buffers, laid.places, strict=True):
            where = place, each.dtype, each.shape
            tensor = made.get(where)
            if tensor is None:
                flat = self._blocks[place.chunk][place.offset : place.offset + buffer.num_bytes]
                tensor = made[where] = flat.view(each.dtype).view(each.shape)
            tensors.append(tensor)
        return tuple(tensors)

    def _lay_out(self, buffers: tuple[Buffer, ...]) -> "_Laid | tuple[int, ...]":
        """Lay buffers out, in new blocks if need be; the sizes of these where there is no room for them."""
        numbers = list(self._blocks)
        sizes = [self._blocks[number].nbytes for number in numbers]
        layout = lay_out(buffers, sizes, self._source.size)
        new = layout.chunk_bytes[len(numbers) :]
        blocks = self._source.take(new) if new else []
        if blocks is None:
            return new
        for block in blocks:
            self._num_blocks += 1
            numbers.append(self._num_blocks)
            self._blocks[self._num_blocks] = block
        return _Laid.of(buffers, tuple(Place(numbers[place.chunk], place.offset) for place in layout.places))

    def _drop_idle(self) -> None:
        # Where hardly two steps are alike, every step has one to drop; each time all others are looked through.
        if self._step % max(1, self._max_idle_steps // _DROPS):
            return
        dropped = False
        for known in (self._placed, self._prepared):
            while known:
                key, placed = next(iter(known.items()))
                if self._step - placed.last_step <= self._max_idle_steps:
                    break
                del known[key]
                dropped = True
        if dropped:
            self._release()

    def _release(self) -> None:
        """Give back what nothing lies in: blocks, and their ends."""
        ends = dict.fromkeys(self._blocks, 0)
        for placed in (*self._placed.values(), *self._prepared.values(), *self._kept.values()):
            for number, end in placed.laid.ends.items():
                ends[number] = max(ends[number], end)
        for number, end in ends.items():
            left = self._source.shrink(self._blocks.pop(number), end)
            if left is not None:
                self._blocks[number] = left


def bytes_of(activations: Sequence[Activation]) -> int:
    """Tell how much memory a step's results take when they are laid out by their lifetimes."""
    return sum(lay_out(_buffers(activations), []).chunk_bytes)


def _buffers(activations: Sequence[Activation]) -> tuple[Buffer, ...]:
    return tuple(
        Buffer(each.first_op, each.last_op, math.prod(each.shape) * each.dtype.itemsize) for each in activations
    )
