import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.memory.page_pool import PagePool, Stretch

NUM_PAGES = 24


class PoolAgainstCounts(RuleBasedStateMachine):
    """The model is a count of references a page, the kept pages in the order of their release, and the stretches."""

    @initialize()
    def start(self) -> None:
        self.forgotten: list[int] = []
        self.pool = PagePool(NUM_PAGES, self.forgotten.append)
        self.references = [0] * NUM_PAGES
        self.kept: list[int] = []
        self.stretches: list[Stretch] = []

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
        self.stretches.append(stretch)

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        stretch = data.draw(st.sampled_from([*self.stretches, Stretch(0, 0)]))
        next_page = stretch.next if self.pool.has(stretch) else None
        page = self.pool.take(stretch)
        self.forget()
        if page is None:
            assert all(self.references)
            return
        assert self.references[page] == 0
        assert page not in self.kept
        assert next_page in (None, page)
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

    @invariant()
    def counts(self) -> None:
        assert self.pool.num_available == self.references.count(0)
        assert self.pool.num_kept == len(self.kept)
        assert [self.pool.references(page) for page in range(NUM_PAGES)] == self.references


PoolAgainstCounts.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_no_page_is_given_twice_or_lost_and_kept_ones_go_in_order = PoolAgainstCounts.TestCase


def ignore(_page: int) -> None:
    return


def test_a_growing_row_gets_consecutive_pages_while_others_grow() -> None:
    pool = PagePool(64, ignore)
    stretches = [pool.hold(16, behind=None) for _ in range(4)]
    pages = [[pool.take(stretch) for stretch in stretches] for _ in range(16)]
    for row in zip(*pages, strict=True):
        assert list(row) == list(range(row[0] or 0, (row[0] or 0) + 16))


def test_a_stretch_is_no_claim_where_nothing_else_is_left() -> None:
    pool = PagePool(4, ignore)
    stretch = pool.hold(4, behind=None)
    assert sorted(pool.take(Stretch(0, 0)) or 0 for _ in range(4)) == [0, 1, 2, 3]
    assert pool.take(stretch) is None


def test_kept_pages_make_room_for_a_stretch_in_the_order_of_their_release() -> None:
    forgotten: list[int] = []
    pool = PagePool(8, forgotten.append)
    whole = pool.hold(8, behind=None)
    for _ in range(8):
        pool.take(whole)
    for page in range(8):
        pool.release(page, keep=True)
    stretch = pool.hold(3, behind=None)
    assert (stretch.next, stretch.end) == (0, 3)
    assert forgotten == [0, 1, 2]


def test_a_page_given_back_twice_is_refused() -> None:
    pool = PagePool(2, ignore)
    page = pool.take(Stretch(0, 0))
    assert page is not None
    pool.release(page, keep=False)
    with pytest.raises(ValueError, match="not used"):
        pool.release(page, keep=False)
    with pytest.raises(ValueError, match="holds nothing"):
        PagePool(0, ignore)
