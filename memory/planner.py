"""Where a step's activations lie in a few chunks of memory: offsets by lifetime, for the lengths at hand.

After TurboTransformers' allocator [1]: the greatest buffers are placed first, each into the smallest gap that is free
for as long as it lives; what fits into no chunk opens another one. Unlike theirs, buffers that live at different times
are never compared: only those that share an operation are.

Pure Python.

[1] Fang et al., TurboTransformers: An Efficient GPU Serving System For Transformer Models, PPoPP 2021, section 4.2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

#: Offsets are multiples of it: a cache line, and enough for every vector instruction.
ALIGNMENT_BYTES = 64
_MIN_CHUNK_BYTES = 2 << 20
# A chunk is larger than what it was opened for, so that a slightly longer step finds room as well.
_SPARE = 1.2


class Buffer(NamedTuple):
    """Memory that is needed from operation ``first_op`` to operation ``last_op``, both included."""

    first_op: int
    last_op: int
    num_bytes: int


class Place(NamedTuple):
    """Bytes ``offset`` and following of chunk number ``chunk``."""

    chunk: int
    offset: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A place each, in the order of the buffers, and the sizes of all chunks in bytes, the given ones first."""

    places: tuple[Place, ...]
    chunk_bytes: tuple[int, ...]


def spacious_bytes(num_bytes: int) -> int:
    """Size of a chunk that is opened for a buffer, where chunks may have any size."""
    return max(_MIN_CHUNK_BYTES, _aligned(int(_SPARE * num_bytes)))


def lay_out(
    buffers: Sequence[Buffer], chunk_bytes: Sequence[int] = (), size: Callable[[int], int] = spacious_bytes
) -> Layout:
    """Place buffers so that none overlaps another one that lives at the same time.

    Args:
        buffers: of one step.
        chunk_bytes: sizes of the chunks that there are already.
        size: bytes of a chunk that is opened for a buffer of so many (aligned) bytes, at least as many.
    """
    sizes = list(chunk_bytes)
    places: list[Place] = [Place(0, 0)] * len(buffers)
    alive: dict[int, list[int]] = {}  # by operation: buffers that are placed
    for index in sorted(range(len(buffers)), key=lambda i: (-buffers[i].num_bytes, buffers[i].first_op)):
        buffer = buffers[index]
        ops = range(buffer.first_op, buffer.last_op + 1)
        rivals = {rival for op in ops for rival in alive.get(op, ())}
        taken: dict[int, list[tuple[int, int]]] = {}
        for rival in rivals:
            place = places[rival]
            taken.setdefault(place.chunk, []).append((place.offset, place.offset + _aligned(buffers[rival].num_bytes)))
        places[index] = _place(_aligned(buffer.num_bytes), sizes, taken, size)
        for op in ops:
            alive.setdefault(op, []).append(index)
    return Layout(tuple(places), tuple(sizes))


def lower_bound_bytes(buffers: Sequence[Buffer]) -> int:
    """Bytes that no layout can do without: the most that are needed at the same time, each aligned."""
    last = max((buffer.last_op for buffer in buffers), default=-1)
    return max(
        (sum(_aligned(b.num_bytes) for b in buffers if b.first_op <= op <= b.last_op) for op in range(last + 1)),
        default=0,
    )


def _place(
    num_bytes: int, sizes: list[int], taken: dict[int, list[tuple[int, int]]], size: Callable[[int], int]
) -> Place:
    """Find the smallest gap of the first chunk that has one, smallest chunks first; open a chunk if none has."""
    for chunk in sorted(range(len(sizes)), key=lambda chunk: sizes[chunk]):
        best: tuple[int, int] | None = None  # gap, offset
        end = 0
        for start, stop in [*sorted(taken.get(chunk, ())), (sizes[chunk], sizes[chunk])]:
            gap = start - end
            if gap >= num_bytes and (best is None or gap < best[0]):
                best = gap, end
            end = max(end, stop)
        if best is not None:
            return Place(chunk, best[1])
    sizes.append(size(num_bytes))
    return Place(len(sizes) - 1, 0)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
