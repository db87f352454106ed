"""What a batch costs: a table over length and batch size, interpolated. Pure.

After TurboTransformers' ``cached_cost`` (arXiv:2010.05680, section 5), with two differences: a cell holds the cost of
the whole batch, not of one request, and cells between the measured ones are interpolated, so that filling the table
takes seconds and not minutes.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import msgpack

from headrace.errors import DecodeError


@dataclass(frozen=True, slots=True)
class CostTable:
    """Milliseconds that a batch takes when all of its requests have, or are padded to, one length.

    Attributes:
        lengths: prompt lengths in tokens, increasing, at least one.
        batch_sizes: rows, increasing, at least one.
        cost_ms: ``cost_ms[i][j]`` is the cost of ``batch_sizes[j]`` rows of ``lengths[i]`` tokens.
    """

    lengths: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    cost_ms: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        rows_fit = len(self.cost_ms) == len(self.lengths) > 0
        if not rows_fit or any(len(row) != len(self.batch_sizes) or not row for row in self.cost_ms):
            raise DecodeError("cost table: its sides do not fit its cells")
        for side in (self.lengths, self.batch_sizes):
            if any(b <= a for a, b in pairwise(side)):
                raise DecodeError("cost table: lengths and batch sizes must increase")

    @classmethod
    def linear(cls, fixed_ms: float, token_ms: float, max_length: int, max_batch_rows: int) -> Self:
        """The table of a machine that nobody has measured: a fixed cost a batch, and one a padded token.

        Both sides hold two points, which is enough where cost is linear in each of them.
        """
        lengths, batch_sizes = (1, max(2, max_length)), (1, max(2, max_batch_rows))
        cells = tuple(tuple(fixed_ms + token_ms * length * rows for rows in batch_sizes) for length in lengths)
        return cls(lengths, batch_sizes, cells)

    def cost(self, length: int, num_rows: int) -> float:
        """Milliseconds of ``num_rows`` requests padded to ``length`` tokens; linear between and beyond the cells."""
        i, x = _locate(self.lengths, length)
        j, y = _locate(self.batch_sizes, num_rows)
        low, high = self.cost_ms[i], self.cost_ms[min(i + 1, len(self.lengths) - 1)]
        k = min(j + 1, len(self.batch_sizes) - 1)
        at_low = low[j] + (low[k] - low[j]) * y
        at_high = high[j] + (high[k] - high[j]) * y
        return at_low + (at_high - at_low) * x

    def encode(self) -> bytes:
        """Serialise for the key ``cost``."""
        packed: bytes = msgpack.packb((self.lengths, self.batch_sizes, self.cost_ms))
        return packed

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what ``encode`` wrote.

        Raises:
            DecodeError: the bytes are not a cost table.
        """
        try:
            fields: Any = msgpack.unpackb(data, use_list=False)
            return cls(*fields)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise DecodeError(f"not a cost table: {error}") from error


def _locate(points: Sequence[int], value: int) -> tuple[int, float]:
    """The cell left of ``value`` and how far into it, in cells; beyond the ends the outermost cell goes on."""
    if len(points) == 1:
        return 0, 0.0
    i = min(max(bisect_left(points, value) - 1, 0), len(points) - 2)
    return i, (value - points[i]) / (points[i + 1] - points[i])
