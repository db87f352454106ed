"""Which pages are free, used, or kept for their content: reference counts, and where new pages lie.

Pure bookkeeping, no bytes. Pages come in chunks of the pool, taken when the open pages are used up and given back as
soon as nothing in them is used, kept or held. Pages of one row should lie behind each other, for a run of consecutive
pages is read without a gather; so a row that grows holds a stretch of free pages, and takes the next one of it. A
stretch lies in one chunk. It is a wish and no claim: where nothing else is left, others take from it.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

from headrace.memory import shuffle
from headrace.memory.chunks import Chunks
from headrace.memory.open_pages import OpenPages
from headrace.memory.shuffle import PageMove


class Stretch:
    """Consecutive pages from ``next`` to before ``end`` that one row hopes to fill; empty if both are equal."""

    __slots__ = ("end", "next")

    def __init__(self, start: int, num_pages: int) -> None:
        self.next = start
        self.end = start + num_pages


class PagePool:
    """Hands out pages; taking and releasing one takes constant time, but for the page that opens a chunk.

    A page is used (somebody refers to it), or kept (nobody does, but its content may be asked for again: the one
    released longest ago is the first to go), or held by a stretch, or open, or in a chunk that is not ours.

    Args:
        chunks: of the pool.
        chunk_pages: pages of a chunk, >= 1; page ``p`` lies in chunk ``p // chunk_pages``.
        forget: told of a kept page whose content is about to be lost.
        max_pages: used and kept at once at most; default: all that there are.
    """

    def __init__(
        self, chunks: Chunks, chunk_pages: int, forget: Callable[[int], None], max_pages: int | None = None
    ) -> None:
        num_pages = len(chunks) * chunk_pages
        self.max_pages = num_pages if max_pages is None else min(max_pages, num_pages)
        if self.max_pages < 1:
            raise ValueError(f"a memory of {self.max_pages} pages holds nothing")
        self.chunk_pages = chunk_pages
        self._num_chunks = len(chunks)
        self._open = OpenPages(chunks, chunk_pages, self.max_pages)
        self._forget = forget
        self._num_references = [0] * num_pages
        self._num_used = 0
        self._held: OrderedDict[int, Stretch] = OrderedDict()
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def num_used(self) -> int:
        """Pages that somebody refers to."""
        return self._num_used

    @property
    def num_available(self) -> int:
        """Pages that nobody refers to, those of free chunks among them."""
        return min(self._open.num_free + len(self._held) + len(self._kept), self.max_pages - self._num_used)

    @property
    def num_kept(self) -> int:
        """Pages that nobody refers to, and whose content may be asked for again."""
        return len(self._kept)

    def references(self, page: int) -> int:
        """How many rows use a page."""
        return self._num_references[page]

    def hold(self, num_pages: int, *, behind: int | None) -> Stretch:
        """Set open pages aside for a row that is going to fill them.

        Kept pages go, oldest first, while that may still make room: what was released together lies together.

        Args:
            num_pages: how many the row may come to need, >= 1.
            behind: the row's last page, which the stretch should follow; None at its beginning.

        Returns:
            A stretch of at most ``num_pages``, possibly shorter, possibly empty.
        """
        num_pages = min(num_pages, self.chunk_pages)
        num_behind = 0 if behind is None else min(num_pages, self.chunk_pages - 1 - behind % self.chunk_pages)
        if behind is not None and num_behind and self._open.are_open(behind + 1, num_behind):
            start, num_pages = behind + 1, num_behind
        else:
            start = self._open.find(num_pages)
            num_evictions = 0
            while start < 0 and self._kept and num_evictions < 2 * num_pages:
                self._evict()
                num_evictions += 1
                start = self._open.find(num_pages)
            while start < 0 and num_pages > 1:
                num_pages //= 2
                start = self._open.find(num_pages)
        stretch = Stretch(start, num_pages) if start >= 0 else Stretch(0, 0)
        for page in range(stretch.next, stretch.end):
            self._open.close(page)
            self._held[page] = stretch
        return stretch

    def let_go(self, stretch: Stretch) -> None:
        """End a stretch; what of it was not taken is open to all."""
        for page in range(stretch.next, stretch.end):
            if self._held.get(page) is stretch:
                del self._held[page]
                self._open.open(page)
        stretch.next = stretch.end

    def has(self, stretch: Stretch) -> bool:
        """Whether a stretch has its next page still."""
        return stretch.next < stretch.end and self._held.get(stretch.next) is stretch

    def take(self, stretch: Stretch) -> int | None:
        """Take a page that nobody refers to, the next of the stretch if it is still there; None if there is none.

        It has one reference and no content that anybody could ask for.
        """
        if self._num_used + len(self._kept) >= self.max_pages:
            if not self._kept:
                return None
            self._evict()
        if self.has(stretch):
            page = stretch.next
            stretch.next += 1
            del self._held[page]
        elif self._may_open():
            page = self._open.first()
            self._open.close(page)
        elif self._held:
            page, _ = self._held.popitem()
        else:
            return None
        self._refer(page)
        return page

    def take_any(self, num_pages: int) -> list[int]:
        """Take pages that nobody refers to, wherever they lie: low ones first, then kept ones, oldest first.

        A kept page changes hands without being open in between: where the memory is full of kept pages, chunks would be
        given back only to be taken again.

        Args:
            num_pages: how many.

        Returns:
            The pages, with one reference each and no content that anybody could ask for; fewer where there are no more.
        """
        pages = self._open.take(min(num_pages, self.max_pages - self._num_used - len(self._kept)))
        while len(pages) < num_pages and self._kept:
            pages.append(self._forget_oldest())
        while len(pages) < num_pages and self._held and self._num_used + len(pages) < self.max_pages:
            pages.append(self._held.popitem()[0])
        for page in pages:
            self._refer(page)
        return pages

    def share(self, page: int) -> None:
        """Refer to a page that is used or kept."""
        if self._num_references[page] == 0:
            del self._kept[page]
        self._refer(page)

    def release(self, page: int, *, keep: bool) -> None:
        """Give up one reference; after the last one the page is kept if its content may be asked for again.

        Raises:
            ValueError: nobody refers to the page (given back twice, or never taken).
        """
        if self._num_references[page] < 1:
            raise ValueError(f"page {page} is not used")
        self._num_references[page] -= 1
        if self._num_references[page]:
            return
        self._num_used -= 1
        if keep:
            self._kept[page] = None
        else:
            self._open.open(page)

    def free_pages(self) -> int:
        """Pages without content, those of free chunks among them: as many as could be moved to."""
        return self._open.num_free + len(self._held)

    def evict(self, num_pages: int) -> None:
        """Give up kept pages, oldest first, until so many pages have no content, or none is kept."""
        while self._kept and self.free_pages() < num_pages:
            self._evict()

    def plan_shuffle(self, num_chunks: int, *, adjacent: bool) -> tuple[tuple[int, ...], tuple[PageMove, ...]] | None:
        """Find the fewest moves that free chunks; nothing changes before ``renumber``.

        Args:
            num_chunks: how many shall be free.
            adjacent: whether they must lie next to each other.

        Returns:
            The chunks, and the moves; None where free pages or movable chunks are too few.
        """
        num_used = self._num_content()
        select = shuffle.choose_run if adjacent else shuffle.choose
        chosen = select(num_used, self.chunk_pages, num_chunks)
        if chosen is None:
            return None
        sources = [page for chunk in chosen for page in self._open.pages(chunk) if self._has_content(page)]
        order = shuffle.fill_order(num_used, chosen)
        targets = (page for chunk in order for page in self._open.pages(chunk) if not self._has_content(page))
        return chosen, shuffle.pair(sources, targets)

    def renumber(self, chosen: Sequence[int], moves: Sequence[PageMove]) -> None:
        """Carry a planned shuffle out, in the books; the chunks are free after it.

        Raises:
            ValueError: they are not: something changed since the plan was made.
        """
        for chunk in {move.target // self.chunk_pages for move in moves}:
            self._open.make_ours(chunk)
        new = {move.source: move.target for move in moves}
        for source, target in new.items():
            if target in self._held:
                del self._held[target]
            else:
                self._open.close(target)
            self._num_references[target] = self._num_references[source]
            self._num_references[source] = 0
        self._kept = OrderedDict((new.get(page, page), None) for page in self._kept)
        for source in new:
            self._open.open(source)
        for chunk in chosen:
            for page in self._open.pages(chunk):
                if page in self._held:
                    del self._held[page]
                    self._open.open(page)
            if self._open.num_closed(chunk) != 0:
                raise ValueError(f"chunk {chunk} is not free")

    def _has_content(self, page: int) -> bool:
        return self._num_references[page] > 0 or page in self._kept

    def _num_content(self) -> list[int | None]:
        """Used and kept pages of each chunk; None where the chunk is somebody else's."""
        num_held = Counter(page // self.chunk_pages for page in self._held)
        num_closed = map(self._open.num_closed, range(self._num_chunks))
        return [None if closed is None else closed - num_held[chunk] for chunk, closed in enumerate(num_closed)]

    def _refer(self, page: int) -> None:
        self._num_used += self._num_references[page] == 0
        self._num_references[page] += 1

    def _forget_oldest(self) -> int:
        """Give up the content of the page that was released longest ago; the page is neither kept nor open then."""
        page, _ = self._kept.popitem(last=False)
        self._forget(page)
        return page

    def _evict(self) -> None:
        self._open.open(self._forget_oldest())

    def _may_open(self) -> bool:
        """Make sure that a page is open, at the cost of a free chunk or of kept pages; False if there is none."""
        while not self._open:
            if self._open.grow():
                return True
            if not self._kept:
                return False
            self._evict()
        return True
