import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.memory.chunks import Chunks
from headrace.memory.page_pool import PagePool, Stretch

CHUNK_PAGES = 6
NUM_CHUNKS = 4
NUM_PAGES = CHUNK_PAGES * NUM_CHUNKS


class PoolAgainstCounts(RuleBasedStateMachine):
    """The model is what each page holds, the kept pages in the order of their release, and the stretches.

    Somebody else takes and returns chunks, and pages are shuffled to make room for it: what a page holds goes along.
    """

    @initialize(max_pages=st.sampled_from([NUM_PAGES, NUM_PAGES - 3, CHUNK_PAGES + 1]))
    def start(self, max_pages: int) -> None:
        self.forgotten: list[int] = []
        self.chunks = Chunks(NUM_CHUNKS)
        self.max_pages = max_pages
        self.pool = PagePool(self.chunks, CHUNK_PAGES, self.forgotten.append, max_pages)
        self.references = [0] * NUM_PAGES
        self.kept: list[int] = []
        self.stretches: list[Stretch] = []
        self.others: list[tuple[int, int]] = []

    def forget(self) -> None:
        gone, self.forgotten[:] = self.forgotten[:], []
        assert gone == self.kept[: len(gone)], "the one released longest ago goes first"
        del self.kept[: len(gone)]

    @rule(num_pages=st.integers(1, 10), behind=st.none() | st.integers(0, NUM_PAGES - 1))
    def hold(self, num_pages: int, behind: int | None) -> None:
        stretch = self.pool.hold(num_pages, behind=behind)
        self.forget()
        assert 0 <= stretch.end - stretch.next <= num_pages
        assert not any(self.references[stretch.next : stretch.end])
        if stretch.end > stretch.next:
            assert stretch.next // CHUNK_PAGES == (stretch.end - 1) // CHUNK_PAGES
        self.stretches.append(stretch)

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        stretch = data.draw(st.sampled_from([*self.stretches, Stretch(0, 0)]))
        next_page = stretch.next if self.pool.has(stretch) else None
        page = self.pool.take(stretch)
        self.forget()
        if page is None:
            num_others = sum(num_chunks for _, num_chunks in self.others) * CHUNK_PAGES
            assert sum(map(bool, self.references)) == min(self.max_pages, NUM_PAGES - num_others)
            return
        assert self.references[page] == 0
        assert page not in self.kept
        assert self.chunks.owner(page // CHUNK_PAGES) == "kv"
        assert next_page in (None, page)
        self.references[page] = 1

    @rule(num_pages=st.integers(0, 10))
    def take_any(self, num_pages: int) -> None:
        num_available, num_full = self.pool.num_available, sum(map(bool, self.references)) + len(self.kept)
        kept = set(self.kept)
        num_empty = min(self.pool.free_pages(), self.max_pages - num_full)
        # At most: a stretch may have lost pages, its next one even. What is held goes last, after what is kept.
        num_held = sum(stretch.end - stretch.next for stretch in self.stretches)
        pages = self.pool.take_any(num_pages)
        self.forget()
        assert len(set(pages)) == len(pages) == min(num_pages, num_available)
        assert not any(self.references[page] for page in pages)
        assert all(self.chunks.owner(page // CHUNK_PAGES) == "kv" for page in pages)
        least, most = max(0, len(pages) - num_empty), max(0, len(pages) - num_empty + num_held)
        assert least <= len(kept.intersection(pages)) <= most, "nothing is forgotten without need"
        for page in pages:
            self.references[page] = 1

    @precondition(lambda self: any(self.references))
    @rule(data=st.data(), keep=st.booleans())
    def release(self, data: st.DataObject, keep: bool) -> None:
        page = data.draw(st.sampled_from([page for page, count in enumerate(self.references) if count]))
        self.pool.release(page, keep=keep)
        self.references[page] -= 1
        if keep and not self.references[page]:
            self.kept.append(page)

    @precondition(lambda self: self.kept or any(self.references))
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from([p for p, count in enumerate(self.references) if count or p in self.kept]))
        self.pool.share(page)
        self.references[page] += 1
        if page in self.kept:
            self.kept.remove(page)

    @precondition(lambda self: self.stretches)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        stretch = data.draw(st.sampled_from(self.stretches))
        self.stretches.remove(stretch)
        self.pool.let_go(stretch)
        assert not self.pool.has(stretch)

    @rule(num_chunks=st.integers(1, NUM_CHUNKS), adjacent=st.booleans(), evict=st.booleans())
    def shuffle(self, num_chunks: int, adjacent: bool, evict: bool) -> None:
        if evict:
            self.pool.evict(num_chunks * CHUNK_PAGES)
            self.forget()
        plan = self.pool.plan_shuffle(num_chunks, adjacent=adjacent)
        if plan is None:
            return
        chosen, moves = plan
        self.pool.renumber(chosen, moves)
        for move in moves:
            assert self.references[move.source] or move.source in self.kept
            assert not self.references[move.target]
            assert move.target not in self.kept
            assert move.target // CHUNK_PAGES not in chosen
        for move in moves:
            self.references[move.target], self.references[move.source] = self.references[move.source], 0
            self.kept = [move.target if page == move.source else page for page in self.kept]
        assert len(chosen) == num_chunks
        assert all(self.chunks.owner(chunk) is None for chunk in chosen)
        if adjacent:
            self.chunks.take(chosen[0], num_chunks, "activations")
            self.others.append((chosen[0], num_chunks))

    @precondition(lambda self: self.others)
    @rule()
    def others_give_back(self) -> None:
        self.chunks.give_back(*self.others.pop(), "activations")

    @invariant()
    def counts(self) -> None:
        if not hasattr(self, "pool"):
            return
        num_others = sum(num_chunks for _, num_chunks in self.others) * CHUNK_PAGES
        num_used = sum(map(bool, self.references))
        assert self.pool.num_used == num_used
        assert self.pool.num_available == min(NUM_PAGES - num_others, self.max_pages) - num_used
        assert self.pool.num_kept == len(self.kept)
        assert [self.pool.references(page) for page in range(NUM_PAGES)] == self.references
        assert num_used + len(self.kept) <= self.max_pages
        held = {page for stretch in self.stretches for page in range(stretch.next, stretch.end)}
        for chunk in range(NUM_CHUNKS):
            pages = range(chunk * CHUNK_PAGES, (chunk + 1) * CHUNK_PAGES)
            busy = any(self.references[page] or page in self.kept for page in pages)
            assert not busy or self.chunks.owner(chunk) == "kv"
            if not busy and not held.intersection(pages):
                assert self.chunks.owner(chunk) != "kv", "a chunk in which there is nothing is given back"


PoolAgainstCounts.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
test_no_page_is_given_twice_or_lost_whatever_moves_and_kept_ones_go_in_order = PoolAgainstCounts.TestCase


def ignore(_page: int) -> None:
    return


def whole(num_pages: int) -> PagePool:
    return PagePool(Chunks(1), num_pages, ignore)


def test_a_growing_row_gets_consecutive_pages_while_others_grow() -> None:
    pool = whole(64)
    stretches = [pool.hold(16, behind=None) for _ in range(4)]
    pages = [[pool.take(stretch) for stretch in stretches] for _ in range(16)]
    for row in zip(*pages, strict=True):
        assert list(row) == list(range(row[0] or 0, (row[0] or 0) + 16))


def test_a_stretch_is_no_claim_where_nothing_else_is_left() -> None:
    pool = whole(4)
    stretch = pool.hold(4, behind=None)
    assert sorted(pool.take(Stretch(0, 0)) or 0 for _ in range(4)) == [0, 1, 2, 3]
    assert pool.take(stretch) is None


def test_kept_pages_make_room_for_a_stretch_in_the_order_of_their_release() -> None:
    forgotten: list[int] = []
    pool = PagePool(Chunks(1), 8, forgotten.append)
    every = pool.hold(8, behind=None)
    for _ in range(8):
        pool.take(every)
    for page in range(8):
        pool.release(page, keep=True)
    stretch = pool.hold(3, behind=None)
    assert (stretch.next, stretch.end) == (0, 3)
    assert forgotten == [0, 1, 2]


def test_a_free_chunk_is_taken_before_kept_pages_go() -> None:
    forgotten: list[int] = []
    pool = PagePool(Chunks(2), 4, forgotten.append)
    first = pool.hold(4, behind=None)
    for _ in range(4):
        pool.take(first)
    for page in range(4):
        pool.release(page, keep=True)
    assert [pool.take(Stretch(0, 0)) for _ in range(4)] == [4, 5, 6, 7]
    assert not forgotten
    assert pool.take(Stretch(0, 0)) == 0
    assert forgotten == [0]


def test_a_page_given_back_twice_is_refused() -> None:
    pool = whole(2)
    page = pool.take(Stretch(0, 0))
    assert page is not None
    pool.release(page, keep=False)
    with pytest.raises(ValueError, match="not used"):
        pool.release(page, keep=False)
    with pytest.raises(ValueError, match="holds nothing"):
        PagePool(Chunks(1), 0, ignore)
