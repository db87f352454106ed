"""Who has which chunk of the pool: chunks are equal, and whoever needs memory takes a few that lie next to each other.

Pure bookkeeping, no bytes. Keys and values take the lowest chunk that is free, everybody else the highest ones: what
comes and goes in long runs does not mix with what is taken chunk by chunk.
"""

from typing import Literal

#: Who may have chunks: pages of keys and values, a step's results, and what kernels need for good.
Owner = Literal["kv", "activations", "workspaces"]


class Chunks:
    """The chunks of one pool.

    Args:
        num_chunks: how many there are, >= 1.
    """

    def __init__(self, num_chunks: int) -> None:
        if num_chunks < 1:
            raise ValueError(f"a pool of {num_chunks} chunks holds nothing")
        self._owners: list[Owner | None] = [None] * num_chunks
        self._counts: dict[Owner | None, int] = {None: num_chunks}
        # A zero byte a free chunk: a run of them is found at the speed of memory.
        self._map = bytearray(num_chunks)

    def __len__(self) -> int:
        return len(self._owners)

    @property
    def num_free(self) -> int:
        """Chunks that nobody has."""
        return self._counts[None]

    def count(self, owner: Owner) -> int:
        """How many chunks an owner has."""
        return self._counts.get(owner, 0)

    def owner(self, chunk: int) -> Owner | None:
        """Say who has a chunk."""
        return self._owners[chunk]

    def find(self, num_chunks: int, owner: Owner) -> int | None:
        """Find free chunks next to each other for an owner: the first of ``num_chunks``, or None."""
        wanted = bytes(num_chunks)
        first = self._map.find(wanted) if owner == "kv" else self._map.rfind(wanted)
        return first if first >= 0 else None

    def take(self, first: int, num_chunks: int, owner: Owner) -> None:
        """Give free chunks to an owner.

        Raises:
            ValueError: one of them is not free.
        """
        self._change(first, num_chunks, None, owner)

    def give_back(self, first: int, num_chunks: int, owner: Owner) -> None:
        """Take chunks back.

        Raises:
            ValueError: the owner does not have one of them.
        """
        self._change(first, num_chunks, owner, None)

    def _change(self, first: int, num_chunks: int, before: Owner | None, after: Owner | None) -> None:
        chunks = range(first, first + num_chunks)
        for chunk in chunks:
            if not 0 <= chunk < len(self._owners) or self._owners[chunk] != before:
                raise ValueError(f"chunk {chunk} does not belong to {before or 'nobody'}")
        for chunk in chunks:
            self._owners[chunk] = after
            self._map[chunk] = after is not None
        self._counts[before] -= num_chunks
        self._counts[after] = self._counts.get(after, 0) + num_chunks
