"""Memory of a forward pass whose results all grow with its tokens, and with nothing else: one layout for every length.

Encoders are like that. Results are laid out by their lifetimes for one token (``planner``, after TurboTransformers'
allocator); for more tokens every offset is that many times as large, so that no length is ever planned, however many
come. TurboTransformers plans anew for each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.memory.planner import ALIGNMENT_BYTES, Buffer, Layout, lay_out

_GRAIN_BYTES = 2 << 20
# Room for somewhat more tokens than those it was made for.
_SPARE = 1.2
_WINDOW = 256
# Lengths whose tensors are kept: every length of one row, a few KiB each.
_MAX_VIEWS = 512


@dataclass(frozen=True, slots=True)
class TokenResult:
    """What one operation writes, ``[num_tokens, width]``.

    Attributes:
        first_op: number of that operation.
        last_op: number of the last operation that reads it.
        width: of a token's row.
        dtype: of its numbers.
    """

    first_op: int
    last_op: int
    width: int
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Of a token."""
        return self.width * self.dtype.itemsize


class TokenArena:
    """Memory for one forward pass at a time.

    It grows when more tokens come than ever before, and shrinks when none of the last 256 passes needed half of it.

    Args:
        results: of a forward pass, whatever its length.
        device: where.
    """

    def __init__(self, results: Sequence[TokenResult], device: torch.device) -> None:
        self._results = tuple(results)
        self._device = device
        buffers = [Buffer(result.first_op, result.last_op, result.num_bytes) for result in results]
        layout = _one_chunk(buffers)
        self._bytes_a_token = layout.chunk_bytes[0] if buffers else 0
        # The same layers follow each other: few results differ in place and width, and only those need tensors.
        keys = [
            (place.offset // result.dtype.itemsize, result.width, result.dtype)
            for place, result in zip(layout.places, self._results, strict=True)
        ]
        regions = dict.fromkeys(keys)
        self._regions = tuple(regions)
        self._region_of = tuple(list(regions).index(key) for key in keys)
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)
        self._typed: dict[torch.dtype, Tensor] = {}
        self._views: dict[int, tuple[Tensor, ...]] = {}
        self._num_passes, self._most_tokens = 0, 0

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return self._memory.nbytes

    def planned_bytes(self, num_tokens: int) -> int:
        """Bytes that a pass of so many tokens takes."""
        return self._bytes_a_token * num_tokens

    def place(self, num_tokens: int) -> tuple[Tensor, ...]:
        """Give a pass memory: each result's, ``[num_tokens, width]``, until the next call.

        The tensors may be written in inference mode and outside of it.
        """
        self._fit(num_tokens)
        views = self._views.get(num_tokens)
        if views is None:
            if len(self._views) >= _MAX_VIEWS:
                del self._views[next(iter(self._views))]
            views = self._views[num_tokens] = self._cut(num_tokens)
        return views

    def _fit(self, num_tokens: int) -> None:
        wanted = self.planned_bytes(num_tokens)
        self._num_passes += 1
        self._most_tokens = max(self._most_tokens, num_tokens)
        if wanted > self._memory.nbytes:
            self._allocate(wanted)
        elif self._num_passes >= _WINDOW:
            needed = self.planned_bytes(self._most_tokens)
            # Memory that could not be smaller is left alone: with it all tensors would have to be made again.
            if needed * 2 < self._memory.nbytes and _spacious(needed) < self._memory.nbytes:
                self._allocate(needed)
            self._num_passes, self._most_tokens = 0, 0

    def _allocate(self, num_bytes: int) -> None:
        self._views.clear()
        self._typed.clear()
        # The old memory first: both together might not fit.
        self._memory = torch.empty(0, dtype=torch.uint8, device=self._device)
        with torch.inference_mode(mode=False):
            self._memory = torch.empty(_spacious(num_bytes), dtype=torch.uint8, device=self._device)
            self._typed = {dtype: self._memory.view(dtype) for _, _, dtype in self._regions}

    def _cut(self, num_tokens: int) -> tuple[Tensor, ...]:
        # One call of torch's for each region: a short pass takes a GPU less than this host needs for a hundred of them.
        cut = [
            self._typed[dtype].as_strided((num_tokens, width), (width, 1), offset * num_tokens)
            for offset, width, dtype in self._regions
        ]
        return tuple(map(cut.__getitem__, self._region_of))


def _spacious(num_bytes: int) -> int:
    return -(-int(num_bytes * _SPARE) // _GRAIN_BYTES) * _GRAIN_BYTES


def _one_chunk(buffers: Sequence[Buffer]) -> Layout:
    """Lay buffers out in one chunk that is no longer than they need."""
    layout = lay_out(buffers, size=lambda num_bytes: max(num_bytes, sum(_aligned(b.num_bytes) for b in buffers)))
    ends = (place.offset + _aligned(b.num_bytes) for place, b in zip(layout.places, buffers, strict=True))
    return Layout(layout.places, (max(ends, default=0),))


def _aligned(num_bytes: int) -> int:
    return math.ceil(num_bytes / ALIGNMENT_BYTES) * ALIGNMENT_BYTES
