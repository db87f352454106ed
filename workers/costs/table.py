"""What a batch costs: a table over length and batch size, and a line over packed tokens, interpolated. Pure.

After TurboTransformers' ``cached_cost`` (arXiv:2010.05680, section 5), with three differences: a cell holds the cost of
the whole batch, not of one request; cells between the measured ones are interpolated, so that filling the table takes
seconds and not minutes; and the cost of tokens that lie back to back, without padding, stands beside it.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import msgpack

from headrace.errors import DecodeError

#: Of the encoding. A reader refuses what it does not know, and whoever wrote it measures again.
TABLE_VERSION = 1
#: What a batch, and a token of it, costs where nobody has measured: a small CPU.
GUESSED_FIXED_MS, GUESSED_TOKEN_MS = 30.0, 2.0


@dataclass(frozen=True, slots=True)
class CostTable:
    """Milliseconds that a batch takes until each of its requests has its first token.

    Attributes:
        lengths: prompt lengths in tokens, increasing, at least one.
        batch_sizes: rows, increasing, at least one.
        cost_ms: ``cost_ms[i][j]`` is the cost of ``batch_sizes[j]`` rows of ``lengths[i]`` tokens; it does not decrease
            with the length.
        packed_tokens: tokens of a batch whose rows lie back to back, increasing; empty where a runtime cannot pack.
        packed_ms: the cost of each; it does not decrease.

    Raises:
        DecodeError: the sides do not fit, a number is negative or none, or a cost decreases.
    """

    lengths: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    cost_ms: tuple[tuple[float, ...], ...]
    packed_tokens: tuple[int, ...] = ()
    packed_ms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        rows_fit = len(self.cost_ms) == len(self.lengths) > 0
        if not rows_fit or any(len(row) != len(self.batch_sizes) or not row for row in self.cost_ms):
            raise DecodeError("cost table: its sides do not fit its cells")
        if len(self.packed_tokens) != len(self.packed_ms):
            raise DecodeError("cost table: its packed tokens do not fit their costs")
        for side in (self.lengths, self.batch_sizes, self.packed_tokens):
            if any(b <= a for a, b in pairwise(side)) or any(value < 1 for value in side):
                raise DecodeError("cost table: lengths, batch sizes and packed tokens must increase, from 1 on")
        columns = [tuple(row[j] for row in self.cost_ms) for j in range(len(self.batch_sizes))]
        for column in (*columns, self.packed_ms):
            if not all(math.isfinite(cost) and cost >= 0 for cost in column):
                raise DecodeError("cost table: a cost is not a number of milliseconds")
            if any(b < a for a, b in pairwise(column)):
                raise DecodeError("cost table: a longer batch costs less than a shorter one")

    @classmethod
    def linear(
        cls, fixed_ms: float, token_ms: float, max_length: int, max_batch_rows: int, *, packs: bool = True
    ) -> Self:
        """The table of a machine that nobody has measured: a fixed cost a batch, and one a token.

        Each side holds two points, which is enough where cost is linear in each of them.

        Args:
            fixed_ms: of any batch.
            token_ms: of a token, be it padding or not.
            max_length: tokens of the longest row, >= 1.
            max_batch_rows: >= 1.
            packs: whether the machine computes rows back to back, without padding.
        """
        lengths, batch_sizes = (1, max(2, max_length)), (1, max(2, max_batch_rows))
        cells = tuple(tuple(fixed_ms + token_ms * length * rows for rows in batch_sizes) for length in lengths)
        packed = (1, lengths[-1] * batch_sizes[-1]) if packs else ()
        return cls(lengths, batch_sizes, cells, packed, tuple(fixed_ms + token_ms * tokens for tokens in packed))

    @property
    def packs(self) -> bool:
        """Whether it prices packed batches."""
        return bool(self.packed_tokens)

    def cost(self, length: int, num_rows: int) -> float:
        """Milliseconds of ``num_rows`` requests padded to ``length`` tokens; linear between and beyond the cells."""
        i, x = _locate(self.lengths, length)
        j, y = _locate(self.batch_sizes, num_rows)
        low, high = self.cost_ms[i], self.cost_ms[min(i + 1, len(self.lengths) - 1)]
        k = min(j + 1, len(self.batch_sizes) - 1)
        at_low = low[j] + (low[k] - low[j]) * y
        at_high = high[j] + (high[k] - high[j]) * y
        return max(0.0, at_low + (at_high - at_low) * x)

    def packed_cost(self, num_tokens: int) -> float:
        """Milliseconds of requests of ``num_tokens`` in all that lie back to back; infinite where nothing packs."""
        if not self.packed_tokens:
            return math.inf
        i, x = _locate(self.packed_tokens, num_tokens)
        low, high = self.packed_ms[i], self.packed_ms[min(i + 1, len(self.packed_ms) - 1)]
        return max(0.0, low + (high - low) * x)

    def raised(self, batch_ms: float) -> Self:
        """The same with so much more for every batch, whatever is in it."""
        grid = tuple(tuple(cost + batch_ms for cost in row) for row in self.cost_ms)
        return replace(self, cost_ms=grid, packed_ms=tuple(cost + batch_ms for cost in self.packed_ms))

    def encode(self) -> bytes:
        """Serialise for the key ``cost`` and for files: MessagePack, the version first."""
        sides = (self.lengths, self.batch_sizes, self.cost_ms, self.packed_tokens, self.packed_ms)
        packed: bytes = msgpack.packb((TABLE_VERSION, *sides))
        return packed

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what ``encode`` wrote.

        Raises:
            DecodeError: the bytes are not a cost table, or one of another version.
        """
        if len(data) > _MAX_BYTES:
            raise DecodeError(f"not a cost table: {len(data)} bytes; at most {_MAX_BYTES} are read")
        try:
            version, *fields = msgpack.unpackb(data, use_list=False)
        except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
            raise DecodeError(f"not a cost table: {error}") from error
        if type(version) is not int or version != TABLE_VERSION:
            raise DecodeError(f"a cost table of version {version!r}, this program reads {TABLE_VERSION}")
        try:
            return cls(*_checked(*fields))
        except (TypeError, ValueError) as error:
            raise DecodeError(f"not a cost table: {error}") from error


#: Beyond these nothing was measured, and sums over a window would lose their digits.
_MOST_TOKENS, _MOST_MS = 1 << 40, 1e12
#: Ours have less than a tenth of it; a grid over a side of millions would keep a scheduler from its work.
_MAX_BYTES, _MAX_POINTS = 1 << 20, 1 << 10


def _checked(lengths: Any, batch_sizes: Any, cost_ms: Any, packed_tokens: Any, packed_ms: Any) -> tuple[Any, ...]:
    """The fields with every side and leaf of its type: a table that somebody else wrote is not trusted to be one."""
    if type(cost_ms) is not tuple:
        raise TypeError("the costs are no sequence")
    for side in (lengths, batch_sizes, packed_tokens, cost_ms, packed_ms, *cost_ms):
        # Bytes, texts and maps can be iterated over, too.
        if type(side) is not tuple or len(side) > _MAX_POINTS:
            raise TypeError(f"a side is not a sequence of at most {_MAX_POINTS}")
    for side in (lengths, batch_sizes, packed_tokens):
        if any(type(value) is not int or value > _MOST_TOKENS for value in side):
            raise TypeError(f"a side holds something other than whole numbers up to {_MOST_TOKENS}")
    for costs in (*cost_ms, packed_ms):
        if any(type(cost) not in (int, float) or cost > _MOST_MS for cost in costs):
            raise TypeError(f"a cost is not a number of milliseconds up to {_MOST_MS:g}")
    floats = tuple(tuple(float(cost) for cost in row) for row in cost_ms)
    return lengths, batch_sizes, floats, packed_tokens, tuple(float(cost) for cost in packed_ms)


def _locate(points: Sequence[int], value: int) -> tuple[int, float]:
    """The cell left of ``value`` and how far into it, in cells; beyond the ends the outermost cell goes on."""
    if len(points) == 1:
        return 0, 0.0
    i = min(max(bisect_left(points, value) - 1, 0), len(points) - 2)
    return i, (value - points[i]) / (points[i + 1] - points[i])
