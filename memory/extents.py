"""Which tokens of the key-value memory belong to which row: contiguous extents, best fit, coalescing.

Pure bookkeeping: it holds no bytes (``kv_cache`` does) and knows no rows (``fusion`` does). A row's length is known
when it is admitted (prompt + max_tokens), so an extent never grows and never moves.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """``num_tokens`` consecutive token slots from slot ``start`` on."""

    start: int
    num_tokens: int

    @property
    def end(self) -> int:
        """The slot behind the last one."""
        return self.start + self.num_tokens


class Extents:
    """Hands out extents of a memory of ``num_tokens`` slots.

    Best fit leaves the large holes to the long rows. There are at most one more holes than rows in flight, some
    dozens, so a scan costs less than keeping them ordered by size as well.

    Args:
        num_tokens: slots of the memory, >= 1.
    """

    def __init__(self, num_tokens: int) -> None:
        if num_tokens < 1:
            raise ValueError(f"a memory of {num_tokens} tokens holds nothing")
        self.num_tokens = num_tokens
        self._holes = [Extent(0, num_tokens)]  # by start; no two touch
        self._reserved: set[Extent] = set()

    @property
    def num_free_tokens(self) -> int:
        """Slots that no extent covers, not necessarily contiguous."""
        return sum(hole.num_tokens for hole in self._holes)

    def reserve(self, num_tokens: int) -> Extent | None:
        """Take the smallest hole that is large enough, the lowest of equals.

        Args:
            num_tokens: slots wanted, >= 1.

        Returns:
            The extent, or None while no hole is large enough.
        """
        if num_tokens < 1:
            raise ValueError(f"an extent of {num_tokens} tokens")
        hole = min(
            (hole for hole in self._holes if hole.num_tokens >= num_tokens),
            key=lambda hole: (hole.num_tokens, hole.start),
            default=None,
        )
        if hole is None:
            return None
        index = bisect_left(self._holes, hole)
        rest = Extent(hole.start + num_tokens, hole.num_tokens - num_tokens)
        self._holes[index : index + 1] = [rest] if rest.num_tokens else []
        extent = Extent(hole.start, num_tokens)
        self._reserved.add(extent)
        return extent

    def release(self, extent: Extent) -> None:
        """Give an extent back; it joins the holes on both sides.

        Raises:
            ValueError: the extent is not reserved (given back twice, or never taken).
        """
        if extent not in self._reserved:
            raise ValueError(f"{extent} is not reserved")
        self._reserved.remove(extent)
        start, end = extent.start, extent.end
        index = bisect_left(self._holes, extent)
        if index < len(self._holes) and self._holes[index].start == end:
            end = self._holes.pop(index).end
        if index > 0 and self._holes[index - 1].end == start:
            start = self._holes.pop(index - 1).start
        insort(self._holes, Extent(start, end - start))
