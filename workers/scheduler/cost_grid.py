"""A cost table's answers for whole batches of questions, as arrays. Pure."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headrace.workers.costs.table import CostTable

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class CostGrid:
    """One table, and those of its cells that have been asked for.

    Args:
        table: of the workers that will run the batches.
        max_rows: rows of the largest batch.
    """

    def __init__(self, table: CostTable, max_rows: int) -> None:
        self.table = table
        self.max_rows = max_rows
        cells = np.array(table.cost_ms)  # [num_lengths, num_batch_sizes]
        self._columns = _along(table.batch_sizes, cells.T, np.arange(1, max_rows + 1)).T  # [num_lengths, max_rows]
        self._rows: dict[int, Floats] = {}
        self._packed = np.zeros(1)

    def padded(self, length: int) -> Floats:
        """Costs of 1, 2, …, ``max_rows`` requests padded to ``length``. Shape: ``[max_rows]``."""
        row = self._rows.get(length)
        if row is None:
            row = self._rows[length] = np.maximum(_along(self.table.lengths, self._columns, [length])[0], 0.0)
        return row

    def packed(self, max_tokens: int) -> Floats:
        """Costs of 0, 1, …, ``max_tokens`` tokens back to back. Shape: ``[max_tokens + 1]``; no token costs nothing.

        Where the runtime cannot pack, of one request as long.
        """
        if len(self._packed) <= max_tokens:
            counts = np.arange(1, max_tokens + 1)
            if self.table.packs:
                costs = _along(self.table.packed_tokens, np.array(self.table.packed_ms)[:, None], counts)
            else:
                costs = _along(self.table.lengths, self._columns[:, :1], counts)
            self._packed = np.concatenate(([0.0], np.maximum(costs[:, 0], 0.0)))
        return self._packed[: max_tokens + 1]


def _along(points: Sequence[int], values: Floats, at: ArrayLike) -> Floats:
    """Linear between and beyond points, as ``CostTable`` has it.

    Args:
        points: increasing.
        values: at each point a row. Shape: ``[num_points, width]``.
        at: where to look. Shape: ``[num_questions]``.

    Returns:
        Shape ``[num_questions, width]``.
    """
    wanted, known = np.asarray(at, dtype=np.float64), np.asarray(points, dtype=np.float64)
    if len(points) == 1:
        return np.repeat(values, len(wanted), axis=0)
    left = np.clip(np.searchsorted(known, wanted, side="left") - 1, 0, len(points) - 2)
    into = (wanted - known[left]) / (known[left + 1] - known[left])
    below: Floats = values[left]
    return below + (values[left + 1] - below) * into[:, None]
