import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.memory.extents import Extent, Extents

NUM_TOKENS = 40


class ExtentsAgainstSlots(RuleBasedStateMachine):
    """The model is a list of slots, each free or owned by one extent."""

    def __init__(self) -> None:
        super().__init__()
        self.extents = Extents(NUM_TOKENS)
        self.owners: list[Extent | None] = [None] * NUM_TOKENS

    def holes(self) -> list[Extent]:
        holes, start = [], 0
        for slot, owner in enumerate([*self.owners, Extent(NUM_TOKENS, 1)]):
            if owner is not None:
                holes += [Extent(start, slot - start)] if slot > start else []
                start = slot + 1
        return holes

    @rule(num_tokens=st.integers(1, NUM_TOKENS + 1))
    def reserve(self, num_tokens: int) -> None:
        fitting = [hole for hole in self.holes() if hole.num_tokens >= num_tokens]
        extent = self.extents.reserve(num_tokens)
        if not fitting:
            assert extent is None
            return
        best = min(fitting, key=lambda hole: (hole.num_tokens, hole.start))
        assert extent == Extent(best.start, num_tokens)
        assert set(self.owners[extent.start : extent.end]) == {None}
        self.owners[extent.start : extent.end] = [extent] * num_tokens

    @precondition(lambda self: any(self.owners))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        reserved = sorted({owner for owner in self.owners if owner})
        extent = data.draw(st.sampled_from(reserved))
        self.extents.release(extent)
        self.owners[extent.start : extent.end] = [None] * extent.num_tokens

    @invariant()
    def counts_what_is_free(self) -> None:
        assert self.extents.num_free_tokens == self.owners.count(None)

    def teardown(self) -> None:
        for extent in {owner for owner in self.owners if owner}:
            self.extents.release(extent)
        assert self.extents.reserve(NUM_TOKENS) == Extent(0, NUM_TOKENS)


ExtentsAgainstSlots.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_extents_never_overlap_or_overrun_and_all_come_back = ExtentsAgainstSlots.TestCase


def test_an_extent_given_back_twice_is_refused() -> None:
    extents = Extents(8)
    extent = extents.reserve(3)
    assert extent is not None
    extents.release(extent)
    with pytest.raises(ValueError, match="not reserved"):
        extents.release(extent)


def test_a_long_row_waits_while_free_slots_are_scattered() -> None:
    extents = Extents(6)
    first, _, third = (extents.reserve(2) for _ in range(3))
    assert first is not None
    assert third is not None
    extents.release(first)
    extents.release(third)
    assert extents.num_free_tokens == 4
    assert extents.reserve(3) is None


@pytest.mark.parametrize("num_tokens", [0, -1])
def test_an_empty_extent_or_memory_is_refused(num_tokens: int) -> None:
    with pytest.raises(ValueError, match="tokens"):
        Extents(4).reserve(num_tokens)
    with pytest.raises(ValueError, match="tokens"):
        Extents(num_tokens)
