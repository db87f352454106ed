from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from headrace.memory.prefix_index import ROOT, PrefixIndex, content_of, key_of

PAGE_SIZE, MIN_SHARED, NUM_PAGES = 4, 2, 12
PARENTS = [ROOT, key_of(ROOT, content_of([1, 1, 1, 1]))]
TOKENS = st.lists(st.integers(1, 2) | st.just(300), max_size=PAGE_SIZE)


class IndexAgainstList(RuleBasedStateMachine):
    """The model is a list of what pages hold, in the order in which they were inserted."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(MIN_SHARED)
        self.held: list[tuple[int, bytes, list[int]]] = []

    @rule(page=st.integers(0, NUM_PAGES - 1), parent=st.sampled_from(PARENTS), token_ids=TOKENS)
    def insert(self, page: int, parent: bytes, token_ids: list[int]) -> None:
        content = content_of(token_ids)
        key = key_of(parent, content) if len(token_ids) == PAGE_SIZE else None
        self.index.insert(page, parent, content, key)
        self.forget_in_list(page)
        known = key is not None and any(held[1:] == (parent, token_ids) for held in self.held)
        if len(token_ids) >= MIN_SHARED and not known:
            self.held.append((page, parent, token_ids))

    @rule(page=st.integers(0, NUM_PAGES - 1))
    def forget(self, page: int) -> None:
        self.index.forget(page)
        self.forget_in_list(page)

    def forget_in_list(self, page: int) -> None:
        self.held = [held for held in self.held if held[0] != page]

    @rule(data=st.data())
    def renumber(self, data: st.DataObject) -> None:
        used = [page for page, _, _ in self.held]
        free = [page for page in range(2 * NUM_PAGES) if page not in used]
        sources = data.draw(st.lists(st.sampled_from(range(NUM_PAGES)), unique=True, max_size=4))
        targets = data.draw(st.permutations([page for page in free if page not in sources]))
        new = dict(zip(sources, targets, strict=False))
        self.index.renumber(new)
        self.held = [(new.get(page, page), parent, token_ids) for page, parent, token_ids in self.held]

    @rule(parent=st.sampled_from(PARENTS), token_ids=TOKENS)
    def find(self, parent: bytes, token_ids: list[int]) -> None:
        assert {page for page in range(2 * NUM_PAGES) if page in self.index} == {page for page, _, _ in self.held}
        full = [page for page, *held in self.held if held == [parent, token_ids] and len(token_ids) == PAGE_SIZE]
        assert self.index.find(key_of(parent, content_of(token_ids))) == (full[0] if full else None)
        lengths = [
            (num_common(held, token_ids), place, page)
            for place, (page, before, held) in enumerate(self.held)
            if before == parent
        ]
        most, _, newest = max(lengths, default=(0, 0, 0))
        expected = (newest, most) if most >= MIN_SHARED else None
        assert self.index.longest(parent, content_of(token_ids)) == expected


def num_common(one: list[int], other: list[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


TestIndexAgainstList = IndexAgainstList.TestCase
