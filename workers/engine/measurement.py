"""Measures what prompts cost: steps of a scratch engine over the real model, smaller ones first, until time is up."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from headrace.errors import MeasurementError
from headrace.workers.costs.building import build_table, isotonic
from headrace.workers.costs.table import CostTable

_LENGTHS = (4, 16, 64, 256, 1024, 4096)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_PACKED_TOKENS = (8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_NUM_SAMPLES = 3
#: A size that has taken this part of the budget has been measured often enough.
_MAX_SHARE = 1 / 16
#: So many packed sizes are measured whatever they take, or nothing could be told from them.
_MIN_PACKED = 2
#: Packed sizes leave the rest of the budget to the others.
_PACKED_SHARE = 1 / 2


@dataclass(frozen=True, slots=True)
class Extent:
    """How far a table reaches.

    Attributes:
        max_length: tokens of the longest prompt.
        max_rows: of the largest batch.
        max_tokens: measured at once at most; what lies beyond is estimated.
        max_packed_length: tokens of the longest prompt where packed tokens are measured; None: ``max_length``.
    """

    max_length: int
    max_rows: int
    max_tokens: int
    max_packed_length: int | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the table."""
        return (*(length for length in _LENGTHS if length < self.max_length), self.max_length)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Of the table."""
        return (*(rows for rows in _BATCH_SIZES if rows < self.max_rows), self.max_rows)

    @property
    def sizes(self) -> list["Size"]:
        """What to measure: packed sizes first, for they tell most of the others; of either kind the smallest first."""
        cells = [Size((length,) * rows, False) for length in self.lengths for rows in self.batch_sizes]
        longest = min(self.max_length, self.max_packed_length or self.max_length)
        packed = [Size(_mixed(tokens, self.max_rows, longest), True) for tokens in _PACKED_TOKENS]
        fitting = [
            size
            for size in cells + packed
            if size.num_tokens <= self.max_tokens
            and size.rows[0] <= self.max_length
            and len(size.rows) <= self.max_rows
        ]
        return sorted(fitting, key=lambda size: (not size.packed, size.num_tokens, len(size.rows)))

    def linear(self, fixed_ms: float, token_ms: float) -> CostTable:
        """A table of this extent for a machine that nobody has measured yet."""
        packed = {tokens: fixed_ms + token_ms * tokens for tokens in _PACKED_TOKENS}
        return build_table({}, packed, self.lengths, self.batch_sizes)


@dataclass(frozen=True, slots=True)
class Size:
    """Prompts that are measured together.

    Attributes:
        rows: the length of each, the longest first.
        packed: they stand for so many tokens back to back, and not for a length.
    """

    rows: tuple[int, ...]
    packed: bool

    @property
    def num_tokens(self) -> int:
        """Of all."""
        return sum(self.rows)


class Scratch(Protocol):
    """What is measured: an engine whose rows, and memory, are nobody else's."""

    @property
    def has_rows(self) -> bool:
        """Whether a step would do anything."""
        ...

    def put(self, lengths: Sequence[int], *, packed: bool) -> None:
        """Give it prompts of these lengths, to be computed back to back or, where it can, padded to the longest."""
        ...

    def step(self) -> str:
        """Compute one step; return what went wrong, "" if nothing."""
        ...

    def clear(self) -> None:
        """Forget what was put."""
        ...


class Measurement:
    """One run over the sizes, a step at a time, so that whoever has something better to do can do it in between.

    Args:
        scratch: what is measured.
        extent: of the table.
        budget_ms: computing time, after which no further size is begun.
        clock_s: for tests.
    """

    def __init__(
        self, scratch: Scratch, extent: Extent, budget_ms: float, clock_s: Callable[[], float] = time.perf_counter
    ) -> None:
        self._scratch = scratch
        self._extent = extent
        self._budget_ms = budget_ms
        self._clock_s = clock_s
        self._sizes = extent.sizes
        self._samples: dict[Size, list[float]] = {}
        self._sample_ms = 0.0
        # The first steps of a process are slower than all others.
        self._warm_up = self._sizes[:_MIN_PACKED]
        self.spent_ms = 0.0

    @property
    def num_measured(self) -> int:
        """Sizes with a sample."""
        return len(self._samples)

    @property
    def is_telling(self) -> bool:
        """Whether more tokens took longer. If not, the machine was busy with something else."""
        medians = {size.num_tokens: median(samples) for size, samples in self._samples.items() if size.packed}
        line = isotonic([medians[num_tokens] for num_tokens in sorted(medians)])
        return line[0] < line[-1]

    def advance(self) -> bool:
        """Compute one step; False if all is measured, or time is up.

        Raises:
            MeasurementError: the step failed.
        """
        if not self._scratch.has_rows:
            if not self._warm_up and not self._choose():
                return False
            self._begin((self._warm_up or self._sizes)[0])
        begin_s = self._clock_s()
        error = self._scratch.step()
        step_ms = (self._clock_s() - begin_s) * 1000
        if error:
            raise MeasurementError(error)
        self.spent_ms += step_ms
        self._sample_ms += step_ms
        if not self._scratch.has_rows:
            if self._warm_up:
                del self._warm_up[0]
            else:
                self._samples.setdefault(self._sizes[0], []).append(self._sample_ms)
        return True

    def pause(self) -> None:
        """Give up the sample at hand: what is computed in between would count as its."""
        self._scratch.clear()

    def table(self) -> CostTable:
        """What was measured so far, estimated where nothing was.

        Raises:
            ConfigurationError: nothing was measured.
        """
        medians = {size: median(samples) for size, samples in self._samples.items()}
        cells = {(size.rows[0], len(size.rows)): cost for size, cost in medians.items() if not size.packed}
        packed = {size.num_tokens: cost for size, cost in medians.items() if size.packed}
        return build_table(cells, packed, self._extent.lengths, self._extent.batch_sizes)

    def _choose(self) -> bool:
        """Bring the size to measure next to the front; False if there is none for which time is left."""
        while self._sizes:
            size = self._sizes[0]
            samples = self._samples.get(size, [])
            if len(samples) < _NUM_SAMPLES and sum(samples) <= self._budget_ms * _MAX_SHARE:
                if sum(done.packed for done in self._samples) < _MIN_PACKED:
                    return True
                left_ms = self._budget_ms * (_PACKED_SHARE if size.packed else 1) - self.spent_ms
                if self.table().packed_cost(size.num_tokens) <= left_ms:
                    return True
            del self._sizes[0]
        return False

    def _begin(self, size: Size) -> None:
        self._sample_ms = 0.0
        self._scratch.put(size.rows, packed=size.packed)


def _mixed(num_tokens: int, max_rows: int, max_length: int) -> tuple[int, ...]:
    """Prompts of different lengths, as traffic brings them: a half, a quarter, an eighth, and what is left.

    Where a half would be too long, so many such groups as it takes.
    """
    rows: list[int] = []
    num_groups = -(-num_tokens // (2 * max_length))
    for group in range(num_groups):
        size = num_tokens * (group + 1) // num_groups - num_tokens * group // num_groups
        parts = [size // part for part in (2, 4, 8)[: max_rows - 1]]
        rows += [*parts, size - sum(parts)]
    return tuple(sorted(rows, reverse=True))
