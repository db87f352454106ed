"""Pages of ours that nobody has, and the chunks that they come in.

Pure bookkeeping, no bytes. Chunks of the pool are taken when the open pages are used up, and given back as soon as all
of their pages are open.
"""

from collections import OrderedDict
from typing import Final

from headrace.memory.chunks import Chunks

_OWNER: Final = "kv"


class OpenPages:
    """The pages that are open: in a chunk of ours, and nobody's.

    Args:
        chunks: of the pool.
        chunk_pages: pages of a chunk, >= 1; page ``p`` lies in chunk ``p // chunk_pages``.
        max_pages: no chunk is taken beyond these.
    """

    def __init__(self, chunks: Chunks, chunk_pages: int, max_pages: int) -> None:
        self._chunks = chunks
        self._chunk_pages = chunk_pages
        self._max_pages = max_pages
        self._open: OrderedDict[int, None] = OrderedDict()
        self._num_closed = [0] * len(chunks)  # by chunk, where it is ours
        # A zero byte an open page: searching bytes for n zeros is how a run is found, at the speed of memory.
        # Behind each chunk stands one that is never zero.
        self._map = bytearray(b"\1") * (len(chunks) * (chunk_pages + 1))

    @property
    def num_free(self) -> int:
        """Open pages, and those of free chunks."""
        return len(self._open) + self._chunks.num_free * self._chunk_pages

    def __bool__(self) -> bool:
        return bool(self._open)

    def first(self) -> int:
        """The page that has been open for longest; there must be one."""
        return next(iter(self._open))

    def pages(self, chunk: int) -> range:
        """The pages of a chunk."""
        return range(chunk * self._chunk_pages, (chunk + 1) * self._chunk_pages)

    def num_closed(self, chunk: int) -> int | None:
        """Pages of a chunk that are not open: 0 where it is free; None where it is somebody else's."""
        owner = self._chunks.owner(chunk)
        if owner is None:
            return 0
        return self._num_closed[chunk] if owner == _OWNER else None

    def are_open(self, first: int, num_pages: int) -> bool:
        """Whether all of some pages of one chunk are open."""
        at = self._at(first)
        return not any(self._map[at : at + num_pages])

    def find(self, num_pages: int) -> int:
        """Find open pages in a row, in a chunk taken for it if need be: the first of them, or -1."""
        at = self._map.find(bytes(num_pages))
        if at < 0 and self.grow():
            at = self._map.find(bytes(num_pages))
        return at if at < 0 else at - at // (self._chunk_pages + 1)

    def take(self, num_pages: int) -> list[int]:
        """Close the lowest open pages, in chunks taken for it if need be; fewer where there are no more."""
        pages: list[int] = []
        at = -1
        while len(pages) < num_pages:
            at = self._map.find(0, at + 1)
            if at >= 0:
                pages.append(at - at // (self._chunk_pages + 1))
                self.close(pages[-1])
            elif not self.grow():
                break
        return pages

    def grow(self) -> bool:
        """Take a chunk; False where there is none, or where it would be too many."""
        if self._chunks.count(_OWNER) * self._chunk_pages >= self._max_pages:
            return False
        chunk = self._chunks.find(1, _OWNER)
        if chunk is None:
            return False
        self._take_chunk(chunk)
        return True

    def make_ours(self, chunk: int) -> None:
        """Take a chunk if it is free."""
        if self._chunks.owner(chunk) is None:
            self._take_chunk(chunk)

    def close(self, page: int) -> None:
        """Somebody has an open page from now on."""
        del self._open[page]
        self._map[self._at(page)] = 1
        self._num_closed[page // self._chunk_pages] += 1

    def open(self, page: int) -> None:
        """Nobody has a page any more; its chunk is given back if it was the last that was not open."""
        self._open_page(page)
        chunk = page // self._chunk_pages
        if not self._num_closed[chunk]:
            for open_page in self.pages(chunk):
                self.close(open_page)
            self._chunks.give_back(chunk, 1, _OWNER)

    def _take_chunk(self, chunk: int) -> None:
        self._chunks.take(chunk, 1, _OWNER)
        self._num_closed[chunk] = self._chunk_pages
        for page in self.pages(chunk):
            self._open_page(page)

    def _open_page(self, page: int) -> None:
        self._open[page] = None
        self._map[self._at(page)] = 0
        self._num_closed[page // self._chunk_pages] -= 1

    def _at(self, page: int) -> int:
        return page + page // self._chunk_pages
