"""Which pages are free, used, or kept for their content: reference counts, and where new pages lie.

Pure bookkeeping, no bytes. Pages of one row should lie behind each other, for a run of consecutive pages is read
without a gather; so a row that grows holds a stretch of free pages, and takes the next one of it. A stretch is a wish
and no claim: where nothing else is left, others take from it.
"""

from collections import OrderedDict
from collections.abc import Callable


class Stretch:
    """Consecutive pages from ``next`` to before ``end`` that one row hopes to fill; empty if both are equal."""

    __slots__ = ("end", "next")

    def __init__(self, start: int, num_pages: int) -> None:
        self.next = start
        self.end = start + num_pages


class PagePool:
    """Hands out pages of a memory of ``num_pages``; taking and releasing one takes constant time.

    A page is used (somebody refers to it), or kept (nobody does, but its content may be asked for again: the one
    released longest ago is the first to go), or held by a stretch, or none of these.

    Args:
        num_pages: pages of the memory, >= 1.
        forget: told of a kept page whose content is about to be lost.
    """

    def __init__(self, num_pages: int, forget: Callable[[int], None]) -> None:
        if num_pages < 1:
            raise ValueError(f"a memory of {num_pages} pages holds nothing")
        self.num_pages = num_pages
        self._forget = forget
        self._num_references = [0] * num_pages
        self._open = OrderedDict.fromkeys(range(num_pages))
        self._held: OrderedDict[int, Stretch] = OrderedDict()
        self._kept: OrderedDict[int, None] = OrderedDict()
        # A zero byte an open page: searching bytes for n zeros is how a stretch is found, at the speed of memory.
        self._map = bytearray(num_pages)

    @property
    def num_available(self) -> int:
        """Pages that nobody refers to."""
        return len(self._open) + len(self._held) + len(self._kept)

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
        start = -1
        if behind is not None and not any(self._map[behind + 1 : behind + 1 + num_pages]):
            start = behind + 1
            num_pages = min(num_pages, self.num_pages - start)
        else:
            start = self._map.find(bytes(num_pages))
        num_evictions = 0
        while start < 0 and self._kept and num_evictions < 2 * num_pages:
            self._evict()
            num_evictions += 1
            start = self._map.find(bytes(num_pages))
        while start < 0 and num_pages > 1:
            num_pages //= 2
            start = self._map.find(bytes(num_pages))
        stretch = Stretch(start, num_pages) if start >= 0 else Stretch(0, 0)
        for page in range(stretch.next, stretch.end):
            del self._open[page]
            self._held[page] = stretch
            self._map[page] = 1
        return stretch

    def let_go(self, stretch: Stretch) -> None:
        """End a stretch; what of it was not taken is open to all."""
        for page in range(stretch.next, stretch.end):
            if self._held.get(page) is stretch:
                del self._held[page]
                self._offer(page)
        stretch.next = stretch.end

    def has(self, stretch: Stretch) -> bool:
        """Whether a stretch has its next page still."""
        return stretch.next < stretch.end and self._held.get(stretch.next) is stretch

    def take(self, stretch: Stretch) -> int | None:
        """Take a page that nobody refers to, the next of the stretch if it is still there; None if there is none.

        It has one reference and no content that anybody could ask for.
        """
        if self.has(stretch):
            page = stretch.next
            stretch.next += 1
            del self._held[page]
        elif self._open or self._kept:
            if not self._open:
                self._evict()
            page, _ = self._open.popitem(last=False)
        elif self._held:
            page, _ = self._held.popitem()
        else:
            return None
        self._map[page] = 1
        self._num_references[page] = 1
        return page

    def share(self, page: int) -> None:
        """Refer to a page that is used or kept."""
        if self._num_references[page] == 0:
            del self._kept[page]
        self._num_references[page] += 1

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
        if keep:
            self._kept[page] = None
        else:
            self._offer(page)

    def _evict(self) -> None:
        page, _ = self._kept.popitem(last=False)
        self._forget(page)
        self._offer(page)

    def _offer(self, page: int) -> None:
        self._open[page] = None
        self._map[page] = 0
