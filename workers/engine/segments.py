"""From a row's pages to what attention reads: runs of pages with consecutive numbers in one chunk, each one view."""

from collections.abc import Sequence

from headrace.kernels.ragged import Piece, Segment
from headrace.memory.kv_cache import KVCache


def segments_of(kv_cache: KVCache, page_ids: Sequence[int], start: int, end: int, *, first_query: int) -> list[Segment]:
    """Cut a chunk where its row's pages stop being consecutive.

    Args:
        kv_cache: where the pages lie.
        page_ids: the row's pages, from its first token on.
        start: position of the chunk's first token in the row.
        end: position behind its last one.
        first_query: index of the chunk's first token in the batch.

    Returns:
        Segments in the order of their tokens: one for a chunk of one token, else one a run that the chunk touches.
    """
    runs = _runs(page_ids, kv_cache.page_size, kv_cache.chunk_pages, end)

    def piece(run: tuple[int, int, int], first: int, last: int) -> Piece:
        slot = run[2] - run[0]
        return Piece(first, last, kv_cache.views(slot + first, slot + last))

    if end - start == 1:
        return [Segment(first_query, 1, tuple(piece(run, run[0], run[1]) for run in runs))]
    segments: list[Segment] = []
    seen: list[Piece] = []
    for run in runs:
        own_start = max(start, run[0])
        if run[0] < start:
            seen.append(piece(run, run[0], min(start, run[1])))
        if own_start < run[1]:
            own = piece(run, own_start, run[1])
            segments.append(Segment(first_query + own_start - start, run[1] - own_start, (*seen, own)))
            if run[0] >= start:
                seen.append(own)
            else:
                seen[-1] = piece(run, run[0], run[1])
    return segments


def _runs(page_ids: Sequence[int], page_size: int, chunk_pages: int, num_tokens: int) -> list[tuple[int, int, int]]:
    """Runs of a row's first tokens: position of the first, position behind the last, slot of the first."""
    runs: list[tuple[int, int, int]] = []
    first = 0
    num_pages = -(-num_tokens // page_size)
    for index in range(1, num_pages + 1):
        if index == num_pages or page_ids[index] != page_ids[index - 1] + 1 or page_ids[index] % chunk_pages == 0:
            runs.append((first * page_size, min(index * page_size, num_tokens), page_ids[first] * page_size))
            first = index
    return runs
