"""The pages of rows: taken as rows grow, shared where rows begin alike, kept for those that will.

Pure bookkeeping over ``page_pool`` (which pages are free) and ``prefix_index`` (what they hold). The paging is that of
[1], the reuse of beginnings by content that of [2].

Written once: no page is written that two rows use, nor any part of a page that the index speaks of. Rows that share a
page in part each have their own, begun as a copy, for the copier is about to write behind what they share.

[1] Kwon et al., Efficient Memory Management for Large Language Model Serving with PagedAttention, SOSP 2023.
[2] Zheng et al., SGLang: Efficient Execution of Structured Language Model Programs, NeurIPS 2024.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from headrace.memory.chunks import Chunks
from headrace.memory.page_pool import PagePool, Stretch
from headrace.memory.prefix_index import ROOT, TOKEN_BYTES, PrefixIndex, content_of, key_of
from headrace.memory.shuffle import PageMove

# Long runs make a page border cheap to cross; a stretch that will not be used is memory that others scatter around.
_MAX_STRETCH_PAGES = 32


@dataclass(frozen=True, slots=True)
class PageCopy:
    """Copy the first ``num_tokens`` of page ``source`` to page ``target``, before anything is written in this step."""

    source: int
    target: int
    num_tokens: int


class RowPages:
    """One row's pages, in the order of its tokens; only ``Pages`` changes it.

    Attributes:
        page_ids: the pages.
        max_tokens: tokens that the row can ever come to hold.
        generation: changes whenever pages that were there do not stay where they were; more may come without a change.
        num_recorded: full pages that the index has been told of.
    """

    __slots__ = ("generation", "keys", "max_tokens", "num_recorded", "page_ids", "stretch")

    def __init__(self, max_tokens: int) -> None:
        self.page_ids: list[int] = []
        self.max_tokens = max_tokens
        self.stretch = Stretch(0, 0)
        self.keys = [ROOT]  # of what stands before each page, as far as it was asked for
        self.num_recorded = 0
        self.generation = 0


class Pages:
    """The pages of one model's key-value memory; a page covers all its layers.

    Args:
        num_pages: in use or kept at once at most, >= 1.
        page_size: tokens of a page, >= 1.
        chunks: of the pool that pages come from; default: one that holds all of them.
        chunk_pages: pages of a chunk; default: ``num_pages``.
        read_as_runs: whether a row's pages should lie behind each other.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        *,
        chunks: Chunks | None = None,
        chunk_pages: int | None = None,
        read_as_runs: bool = True,
    ) -> None:
        self.page_size = page_size
        # A copy of fewer tokens saves less than the step that waited for it.
        self._index = PrefixIndex(min_shared=max(1, page_size // 4))
        self._pool = PagePool(chunks or Chunks(1), chunk_pages or num_pages, self._index.forget, num_pages)
        self._read_as_runs = read_as_runs
        self._rows: set[RowPages] = set()  # those that have pages

    @property
    def num_pages(self) -> int:
        """Pages that rows may have at once."""
        return self._pool.max_pages

    @property
    def num_available(self) -> int:
        """Pages that no row uses, kept ones among them."""
        return self._pool.num_available

    @property
    def num_used(self) -> int:
        """Pages that some row uses."""
        return self._pool.num_used

    @property
    def num_kept(self) -> int:
        """Pages that no row uses, and that one which begins alike could."""
        return self._pool.num_kept

    def free_chunks(self, num_chunks: int, *, adjacent: bool) -> tuple[PageMove, ...] | None:
        """Free chunks, by giving up kept pages as far as need be and by the fewest moves of the others.

        Args:
            num_chunks: how many.
            adjacent: whether they must lie next to each other.

        Returns:
            What must be copied before anything is written; rows are renumbered already. None, and nothing has moved,
            where rows use too much.
        """
        self._pool.evict(num_chunks * self._pool.chunk_pages)
        shuffle = self._pool.plan_shuffle(num_chunks, adjacent=adjacent)
        if shuffle is None:
            return None
        chosen, moves = shuffle
        self._pool.renumber(chosen, moves)
        new = {move.source: move.target for move in moves}
        self._index.renumber(new)
        for row in self._rows:
            row.page_ids[:] = [new.get(page, page) for page in row.page_ids]
            row.generation += 1
        return moves

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold ``num_tokens`` of one row."""
        return -(-num_tokens // self.page_size)

    def reserve(self, row: RowPages, num_tokens: int) -> int:
        """Take pages until a row has room for its first ``num_tokens``, or no page is left.

        Returns:
            How many tokens the row has room for, at most ``num_tokens``.
        """
        self._rows.add(row)
        if self._read_as_runs:
            self._extend_run(row, num_tokens)
        else:
            row.page_ids += self._pool.take_any(self.pages_for(num_tokens) - len(row.page_ids))
        return min(num_tokens, len(row.page_ids) * self.page_size)

    def _extend_run(self, row: RowPages, num_tokens: int) -> None:
        """Take pages as ``reserve`` does, behind each other as far as may be."""
        while len(row.page_ids) * self.page_size < num_tokens:
            if not self._pool.has(row.stretch):
                self._pool.let_go(row.stretch)
                num_missing = self.pages_for(max(row.max_tokens, num_tokens)) - len(row.page_ids)
                behind = row.page_ids[-1] if row.page_ids else None
                row.stretch = self._pool.hold(min(num_missing, _MAX_STRETCH_PAGES), behind=behind)
            page = self._pool.take(row.stretch)
            if page is None:
                return
            row.page_ids.append(page)

    def adopt(self, row: RowPages, token_ids: Sequence[int], num_computed: int) -> tuple[int, PageCopy | None]:
        """Use what other rows have computed, as far as it is what this row would compute next.

        One token at least is left to be computed, for its logits are wanted.

        Args:
            row: its pages hold ``num_computed`` tokens.
            token_ids: of the row, all that are known.
            num_computed: how many of them are in its pages.

        Returns:
            How many are in its pages now, and what must be copied for that to be true.
        """
        size = self.page_size
        if num_computed != len(row.page_ids) * size:
            return num_computed, None
        for page in self._to_share(row, token_ids):
            self._pool.share(page)
            row.page_ids.append(page)
            row.num_recorded = len(row.page_ids)
            num_computed += size
            self._rows.add(row)
        found = self._to_copy(row, token_ids, num_computed)
        if found is None:
            return num_computed, None
        # The page for the copy may be the very one that is copied, if that is the last one left: then it stays put.
        source, num_shared = found
        if self.reserve(row, num_computed + num_shared) < num_computed + num_shared:
            return num_computed, None
        return num_computed + num_shared, PageCopy(source, row.page_ids[-1], num_shared)

    def head(self, row: RowPages, token_ids: Sequence[int], page: int) -> bytes | None:
        """Name the beginning of a row's page number ``page`` (see ``PrefixIndex.head``); None if it is too short.

        The row's last token is left out, as it is where rows adopt pages.
        """
        start = page * self.page_size
        end = min(start + self.page_size, len(token_ids) - 1)
        return self._index.head(self._key(row, token_ids, page), content_of(token_ids[start:end]))

    def record(self, row: RowPages, token_ids: Sequence[int], num_computed: int, *, with_last: bool) -> None:
        """Let later rows find what a row has computed.

        Args:
            row: its pages hold ``num_computed`` tokens.
            token_ids: of the row.
            num_computed: how many of them are in its pages.
            with_last: also the last page, which is not full.
        """
        size, first, num_full = self.page_size, row.num_recorded, num_computed // self.page_size
        if first < num_full:
            keys, width = self._keys(row, token_ids, num_full), size * TOKEN_BYTES
            content = content_of(token_ids[first * size : num_full * size])
            for index, page in enumerate(row.page_ids[first:num_full]):
                held = content[index * width : (index + 1) * width]
                self._index.insert(page, keys[first + index], held, keys[first + index + 1])
            row.num_recorded = num_full
        if with_last and num_computed % size:
            held = content_of(token_ids[num_full * size : num_computed])
            self._index.insert(row.page_ids[num_full], self._key(row, token_ids, num_full), held, None)

    def forget(self, row: RowPages) -> None:
        """Let no later row find what only this one has."""
        for page in row.page_ids:
            if self._pool.references(page) == 1:
                self._index.forget(page)

    def end(self, row: RowPages) -> None:
        """Give a row's pages back; those that the index knows are kept until somebody needs the room."""
        self._pool.let_go(row.stretch)
        # A beginning is more likely to be asked for than what follows it: let it be the last to go.
        for page in reversed(row.page_ids):
            self._pool.release(page, keep=page in self._index)
        row.page_ids.clear()
        row.generation += 1
        row.num_recorded = 0
        self._rows.discard(row)

    def num_missing(self, row: RowPages, token_ids: Sequence[int]) -> int:
        """Count the pages that a row would have to take for its ``token_ids`` and one more, after what it may share."""
        used = sum(1 for _ in takewhile(self._pool.references, self._to_share(row, token_ids)))
        num_shared = len(row.page_ids) + used
        return max(0, min(self.pages_for(len(token_ids) + 1), self.pages_for(row.max_tokens)) - num_shared)

    def num_adopted(self, row: RowPages, token_ids: Sequence[int], num_computed: int) -> int:
        """Count the tokens that ``adopt`` would leave in a row's pages; its arguments are those of ``adopt``."""
        if num_computed != len(row.page_ids) * self.page_size:
            return num_computed
        num_computed += self.page_size * sum(1 for _ in self._to_share(row, token_ids))
        found = self._to_copy(row, token_ids, num_computed)
        return num_computed + (found[1] if found else 0)

    def _to_share(self, row: RowPages, token_ids: Sequence[int]) -> Iterator[int]:
        """Say which full pages a row may share behind those that it has; its last token is left out."""
        num_pages = len(row.page_ids)
        while (num_pages + 1) * self.page_size < len(token_ids):
            num_pages += 1
            page = self._index.find(self._key(row, token_ids, num_pages))
            if page is None:
                return
            yield page

    def _to_copy(self, row: RowPages, token_ids: Sequence[int], num_computed: int) -> tuple[int, int] | None:
        """Find the page whose beginning a row may copy behind full ones: it, and how many of its tokens."""
        content = content_of(token_ids[num_computed : min(num_computed + self.page_size, len(token_ids) - 1)])
        return self._index.longest(self._key(row, token_ids, num_computed // self.page_size), content)

    def _key(self, row: RowPages, token_ids: Sequence[int], page: int) -> bytes:
        """Key of what stands before page number ``page``; the tokens of all pages before it must be known."""
        return self._keys(row, token_ids, page)[page]

    def _keys(self, row: RowPages, token_ids: Sequence[int], page: int) -> list[bytes]:
        """Keys of what stands before each page of a row, as far as page number ``page`` at least."""
        keys, width = row.keys, self.page_size * TOKEN_BYTES
        if len(keys) <= page:
            content = content_of(token_ids[(len(keys) - 1) * self.page_size : page * self.page_size])
            for start in range(0, len(content), width):
                keys.append(key_of(keys[-1], content[start : start + width]))
        return keys
