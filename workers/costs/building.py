"""From measured points to a table: cells that nobody measured are estimated, and noise is smoothed away. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from headrace.errors import ConfigurationError
from headrace.workers.costs.table import GUESSED_FIXED_MS, GUESSED_TOKEN_MS, CostTable


def build_table(
    cells: Mapping[tuple[int, int], float],
    packed: Mapping[int, float],
    lengths: Iterable[int],
    batch_sizes: Iterable[int],
) -> CostTable:
    """Make a table that increases in every direction of points that nearly do.

    A measured machine is noisy: a longer batch may seem cheaper than a shorter one. Along the lengths and the packed
    tokens costs are replaced by the nearest ones (least squares) that do not decrease. A cell without a measurement
    costs what as many tokens cost back to back; and these go on behind the last measurement no cheaper a token than
    before it, or what nobody has tried could seem to be free.

    Args:
        cells: (length, rows) -> ms.
        packed: tokens -> ms; at least one.
        lengths: of the table, at least one.
        batch_sizes: of the table, at least one.

    Raises:
        ConfigurationError: no packed point.
    """
    if not packed:
        raise ConfigurationError("a cost table needs a measurement of packed tokens")
    sides = tuple(sorted(set(lengths))), tuple(sorted(set(batch_sizes)))
    tokens = tuple(sorted(packed))
    tokens, line = _reaching(sides[0][-1] * sides[1][-1], tokens, isotonic([packed[count] for count in tokens]))
    estimate = CostTable((1,), (1,), ((0.0,),), tokens, line)
    columns = []
    for rows in sides[1]:
        known = [cells.get((length, rows)) for length in sides[0]]
        costs = [
            estimate.packed_cost(length * rows) if cost is None else cost
            for length, cost in zip(sides[0], known, strict=True)
        ]
        columns.append(isotonic(costs))
    # More rows do not cost less; the larger of two lines that do not decrease does not decrease either.
    grid = [tuple(accumulate(row, max)) for row in zip(*columns, strict=True)]
    return CostTable(*sides, tuple(grid), tokens, line)


def _reaching(most: int, tokens: tuple[int, ...], line: tuple[float, ...]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The line, with one more point where it ends before ``most`` tokens."""
    if tokens[-1] >= most or len(tokens) < 2:
        return tokens, line
    slope = max((line[-1] - line[i]) / (tokens[-1] - tokens[i]) for i in (0, -2))
    if slope == 0:
        # Nothing but noise: of a machine so busy, only how slow it is has been seen. It is taken for the usual one.
        slope = line[-1] * GUESSED_TOKEN_MS / (GUESSED_FIXED_MS + GUESSED_TOKEN_MS * tokens[-1])
    return (*tokens, most), (*line, line[-1] + slope * (most - tokens[-1]))


def isotonic(values: Sequence[float]) -> tuple[float, ...]:
    """The numbers closest to ``values`` (least squares) that do not decrease.

    Pool adjacent violators (Ayer et al., 1955): neighbours in the wrong order are replaced by their mean, until there
    are none.
    """
    means: list[float] = []
    counts: list[int] = []
    for value in values:
        means.append(value)
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            mean, count = means.pop(), counts.pop()
            means[-1] = (means[-1] * counts[-1] + mean * count) / (counts[-1] + count)
            counts[-1] += count
    # A mean of equals may differ from them in its last bit.
    flat = [mean for mean, count in zip(means, counts, strict=True) for _ in range(count)]
    return tuple(accumulate(flat, max))
