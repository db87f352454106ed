"""Cost tables and exhaustive search, for tests of the partition."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from hypothesis import strategies as st

from headrace.workers.costs.table import CostTable
from headrace.workers.scheduler.partition import Item, Limits

UNBOUNDED = Limits(max_rows=100, max_kv_tokens=10**9, max_tokens=10**9)


def linear(fixed_ms: float = 10.0, token_ms: float = 1.0, packed_token_ms: float | None = None) -> CostTable:
    """A fixed cost a batch and one a token, padded or, where that is possible, packed."""
    table = CostTable.linear(fixed_ms, token_ms, 512, 128, packs=False)
    if packed_token_ms is None:
        return table
    return replace(
        table, packed_tokens=(1, 1_001), packed_ms=(fixed_ms + packed_token_ms, fixed_ms + 1_001 * packed_token_ms)
    )


PADDED = linear()


def set_partitions(indices: Sequence[int]) -> Iterator[list[list[int]]]:
    """Every way to split indices into batches."""
    if not indices:
        yield []
        return
    first, rest = indices[0], indices[1:]
    for smaller in set_partitions(rest):
        yield [[first], *smaller]
        for i, batch in enumerate(smaller):
            yield [*smaller[:i], [first, *batch], *smaller[i + 1 :]]


def runs(order: Sequence[int]) -> Iterator[list[list[int]]]:
    """Every way to cut an order into runs."""
    if not order:
        yield []
        return
    for end in range(1, len(order) + 1):
        for rest in runs(order[end:]):
            yield [list(order[:end]), *rest]


def price(batch: Sequence[int], items: Sequence[Item], table: CostTable) -> float:
    return table.cost(max(items[i].length for i in batch), len(batch))


def total(batches: Sequence[Sequence[int]], items: Sequence[Item], table: CostTable) -> float:
    return sum(price(batch, items, table) for batch in batches)


def mean_completion(batches: Sequence[Sequence[int]], items: Sequence[Item], table: CostTable) -> float:
    """Of batches that run in the order given."""
    waited = now = 0.0
    for batch in batches:
        now += price(batch, items, table)
        waited += now * len(batch)
    return waited / len(items)


def fits(batch: Sequence[int], items: Sequence[Item], limits: Limits) -> bool:
    """Whether a batch keeps to the limits; a request alone always does."""
    padded = max(items[i].length for i in batch) * len(batch)
    kv_tokens = sum(items[i].kv_tokens for i in batch)
    within = padded <= limits.max_tokens and kv_tokens <= limits.max_kv_tokens
    return len(batch) == 1 or (len(batch) <= limits.max_rows and within)


@st.composite
def monotone_tables(draw: st.DrawFn) -> CostTable:
    """Tables that do not decrease with length; over batch sizes they may do what they like.

    They cover every batch size that is asked for: beyond its last cell a table goes on as a straight line, and two such
    lines may cross.
    """
    lengths = sorted(draw(st.sets(st.integers(1, 60), min_size=1, max_size=4)))
    sizes = sorted({1, 9} | draw(st.sets(st.integers(2, 8), max_size=3)))
    rows: list[tuple[float, ...]] = []
    for _ in lengths:
        below = rows[-1] if rows else tuple(1.0 for _ in sizes)
        rows.append(tuple(cost + draw(st.integers(0, 50)) for cost in below))
    return CostTable(tuple(lengths), tuple(sizes), tuple(rows))


@st.composite
def packed_tables(draw: st.DrawFn) -> CostTable:
    """Tables whose packed costs rise now faster, now slower, and neither large nor small batches are always best."""
    tokens = sorted(draw(st.sets(st.integers(1, 200), min_size=1, max_size=5)))
    costs = accumulate(draw(st.lists(st.integers(0, 60), min_size=len(tokens), max_size=len(tokens))))
    return replace(PADDED, packed_tokens=tuple(tokens), packed_ms=tuple(float(cost + 5) for cost in costs))
