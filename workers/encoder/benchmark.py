"""What ways to batch do for an encoder: one window of waiting rows, computed by each way, timed from ids to vectors.

Ways that pad compute the padding: each row of a batch is as long as the longest. ``none``: rows alone; ``naive``: in
the order of arrival; ``sorted``: by length; ``dp``: the scheduler's dynamic program over costs that are measured
first; ``packed``: rows behind each other without padding, as the fleet computes them.
"""

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch

from headrace.errors import ConfigurationError
from headrace.workers.costs.building import build_table
from headrace.workers.costs.table import CostTable
from headrace.workers.encoder.loading import Encoder
from headrace.workers.encoder.runner import row_positions
from headrace.workers.scheduler.cost_grid import CostGrid
from headrace.workers.scheduler.partition import Item, Limits, cut_padded

Way = Literal["none", "naive", "sorted", "dp", "packed"]
WAYS: Final[tuple[Way, ...]] = get_args(Way)

_LENGTHS = (4, 16, 64, 128, 256, 512, 1024, 2048)
_ROWS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Window:
    """Rows that wait, and how large a batch may be.

    Attributes:
        lengths: tokens of each row, in the order of arrival.
        max_rows: of a batch that is padded.
        max_tokens: of a batch, padding included; a longer row is computed alone.
    """

    lengths: tuple[int, ...]
    max_rows: int
    max_tokens: int

    @classmethod
    def drawn(cls, num_rows: int, least: int, most: int, seed: int, *, max_rows: int, max_tokens: int) -> "Window":
        """Draw lengths, all from ``least`` to ``most`` equally probable.

        Raises:
            ConfigurationError: there is nothing to draw.
        """
        if not 1 <= least <= most or num_rows < 1 or max_rows < 1 or max_tokens < 1:
            raise ConfigurationError(
                f"no window of {num_rows} rows of {least} to {most} tokens in batches of {max_rows} rows and "
                f"{max_tokens} tokens: each must be at least 1, and the shortest row no longer than the longest"
            )
        chosen = random.Random(seed)
        return cls(tuple(chosen.randint(least, most) for _ in range(num_rows)), max_rows, max_tokens)

    def batches(self, way: Way, table: CostTable | None) -> list[list[int]]:
        """Cut the window: the lengths to compute, batch by batch; padded ones are all equal; only ``dp`` asks costs."""
        if way == "packed":
            return self._packed()
        if way == "dp":
            assert table is not None, "dp cuts by costs"
            items = [Item(length, length) for length in self.lengths]
            grid = CostGrid(table, self.max_rows)
            cut = cut_padded(items, grid, Limits(self.max_rows, 1 << 40, self.max_tokens))
        else:
            order = list(range(len(self.lengths)))
            if way == "sorted":
                order.sort(key=lambda row: self.lengths[row])
            cut = self._in_order(order, 1 if way == "none" else self.max_rows)
        return [[max(self.lengths[row] for row in rows)] * len(rows) for rows in cut]

    def _in_order(self, order: Sequence[int], max_rows: int) -> list[list[int]]:
        batches: list[list[int]] = []
        longest = 0
        for row in order:
            length = self.lengths[row]
            full = not batches or len(batches[-1]) == max_rows
            if full or max(longest, length) * (len(batches[-1]) + 1) > self.max_tokens:
                batches.append([])
                longest = 0
            batches[-1].append(row)
            longest = max(longest, length)
        return batches

    def _packed(self) -> list[list[int]]:
        batches: list[list[int]] = []
        for length in self.lengths:
            if not batches or sum(batches[-1]) + length > self.max_tokens:
                batches.append([])
            batches[-1].append(length)
        return batches


@dataclass(frozen=True, slots=True)
class WayTime:
    """What one way took.

    Attributes:
        way: its name.
        num_batches: into which the window was cut.
        padded_share: of the tokens that were computed.
        ms: of the window, the median of several runs.
        rows_per_s: of the window.
        tokens_per_s: padding not counted.
    """

    way: Way
    num_batches: int
    padded_share: float
    ms: float
    rows_per_s: float
    tokens_per_s: float


class Benchmark:
    """Times windows on one encoder.

    Args:
        encoder: loaded.
        repetitions: of each measurement; the median counts.
    """

    def __init__(self, encoder: Encoder, repetitions: int = 3) -> None:
        self._encoder = encoder
        self._repetitions = repetitions
        self._config = encoder.model.config

    def costs(self, window: Window) -> CostTable:
        """Measure what padded and packed batches cost up to the window's sizes."""
        longest = max(window.lengths)
        lengths = [length for length in _LENGTHS if length < longest] + [longest]
        rows = [count for count in _ROWS if count < window.max_rows] + [window.max_rows]
        cells = {
            (length, count): self.batch_ms([length] * count)
            for length in lengths
            for count in rows
            if count == 1 or length * count <= window.max_tokens
        }
        mean = max(1, sum(window.lengths) // len(window.lengths))
        packed = {mean * count: self.batch_ms([mean] * count) for count in rows}
        return build_table(cells, packed, lengths, rows)

    def time(self, window: Window, way: Way, table: CostTable | None = None) -> WayTime:
        """Time one way.

        Args:
            window: what waits.
            way: how it is cut.
            table: of ``costs``, for ``dp``; the other ways need none.
        """
        batches = window.batches(way, table)
        self._run(batches)
        times = []
        for _ in range(self._repetitions):
            begin_s = time.perf_counter()
            self._run(batches)
            times.append(time.perf_counter() - begin_s)
        median_s, num_tokens = statistics.median(times), sum(window.lengths)
        return WayTime(
            way=way,
            num_batches=len(batches),
            padded_share=1 - num_tokens / sum(map(sum, batches)),
            ms=median_s * 1000,
            rows_per_s=len(window.lengths) / median_s,
            tokens_per_s=num_tokens / median_s,
        )

    def batch_ms(self, lengths: Sequence[int]) -> float:
        """Median time of one batch; the first runs, which may compile and capture, are not counted."""
        times = []
        for repetition in range(self._repetitions + 2):
            begin_s = time.perf_counter()
            self._run([lengths])
            if repetition > 1:
                times.append((time.perf_counter() - begin_s) * 1000)
        return statistics.median(times)

    @torch.inference_mode()
    def _run(self, batches: Sequence[Sequence[int]]) -> None:
        vectors = []
        for lengths in batches:
            rows = [torch.randint(6, self._config.vocab_size, (length,)) for length in lengths]
            positions = [row_positions(row, self._config.first_position, self._config.pad_id) for row in rows]
            batch = self._encoder.operations.pack(torch.cat(rows), torch.cat(positions), None, lengths)
            hidden = self._encoder.model.forward(batch)
            vectors.append(self._encoder.operations.pool(hidden, batch, "mean", normalise=True))
        # On a GPU nothing has been waited for until here.
        torch.cat(vectors).cpu()
