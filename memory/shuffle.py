"""Which pages move so that whole chunks become free: the fewest that do.

After Flover's memory shuffle [1], which closes gaps between rows; here rows are pages that lie anywhere, and what is
wanted is room for something that needs chunks in one piece.

Why it is the fewest: each used page of a chunk that is to be free must move once at least, and one move does if there
is a free page elsewhere. All chunks have the same number of pages, so whether there are enough does not depend on the
choice: the pages that are free now must be as many as the chunks to be freed have. So a choice is as good as its used
pages are few, for any chunks as for a run of them.

Pure Python.

[1] Yao et al., Flover: A Temporal Fusion Framework for Efficient Autoregressive Model Parallel Inference, 2023.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PageMove:
    """Page ``source`` is called ``target`` from now on, and its content is there."""

    source: int
    target: int


def choose(num_used: Sequence[int | None], chunk_pages: int, num_chunks: int) -> tuple[int, ...] | None:
    """Choose chunks to be freed by the fewest moves, wherever they lie; O(n log n).

    Args:
        num_used: used pages of each chunk, 0 for one that is free; None for a chunk whose pages must neither move nor
            be moved to.
        chunk_pages: pages of a chunk.
        num_chunks: how many shall be free.

    Returns:
        The chunks in rising order; None where pages or chunks are too few.
    """
    if not _enough_pages(num_used, chunk_pages, num_chunks):
        return None
    # Of equal ones the last: whoever wants chunks takes them from the end.
    movable = ((used, -chunk) for chunk, used in enumerate(num_used) if used is not None)
    chosen = heapq.nsmallest(num_chunks, movable)
    return tuple(sorted(-chunk for _, chunk in chosen)) if len(chosen) == num_chunks else None


def choose_run(num_used: Sequence[int | None], chunk_pages: int, num_chunks: int) -> tuple[int, ...] | None:
    """Choose chunks that lie next to each other; as ``choose`` else, O(n)."""
    if not _enough_pages(num_used, chunk_pages, num_chunks):
        return None
    best: tuple[int, int] | None = None  # used pages, first chunk
    total = num_movable = 0
    for end, used in enumerate(num_used, start=1):
        total, num_movable = (total + used, num_movable + 1) if used is not None else (0, 0)
        if num_movable > num_chunks:
            total -= num_used[end - 1 - num_chunks] or 0
        if num_movable >= num_chunks and (best is None or total <= best[0]):
            best = total, end - num_chunks
    return None if best is None else tuple(range(best[1], best[1] + num_chunks))


def fill_order(num_used: Sequence[int | None], chosen: Iterable[int]) -> Iterator[int]:
    """Chunks that pages move to, the fullest first: what is nearly empty may be free soon of itself."""
    going = set(chosen)
    staying = [(-used, chunk) for chunk, used in enumerate(num_used) if used is not None and chunk not in going]
    heapq.heapify(staying)
    while staying:
        yield heapq.heappop(staying)[1]


def pair(sources: Sequence[int], targets: Iterator[int]) -> tuple[PageMove, ...]:
    """Give each page that moves a free one."""
    return tuple(PageMove(source, next(targets)) for source in sources)


def _enough_pages(num_used: Sequence[int | None], chunk_pages: int, num_chunks: int) -> bool:
    num_free = sum(chunk_pages - used for used in num_used if used is not None)
    return num_free >= num_chunks * chunk_pages
