from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from headrace.memory.pages import Pages
from headrace.testing.plain_params import plain_params
from headrace.workers.engine.fusion import Fusion
from headrace.workers.engine.plan import Plan
from headrace.workers.engine.runner import Draw
from headrace.workers.engine.sequence import Sequence
from headrace.workers.engine.settle import settle

NUM_PAGES, PAGE_SIZE = 15, 4
STOP = 2


class Slots:
    """What stands in every slot of the memory: the token that was written there last, and those before it."""

    def __init__(self) -> None:
        self.content: list[list[tuple[int, ...] | None]] = [[None] * PAGE_SIZE for _ in range(NUM_PAGES)]

    def apply(self, plan: Plan) -> None:
        for copy in plan.copies:
            self.content[copy.target][: copy.num_tokens] = self.content[copy.source][: copy.num_tokens]
        for chunk in plan.chunks:
            tokens = all_tokens(chunk.sequence)
            for position in range(chunk.start, chunk.end):
                page = chunk.sequence.pages.page_ids[position // PAGE_SIZE]
                self.content[page][position % PAGE_SIZE] = tokens[: position + 1]

    def check(self, row: Sequence, num_tokens: int) -> None:
        tokens = all_tokens(row)
        for position in range(num_tokens):
            found = self.content[row.pages.page_ids[position // PAGE_SIZE]][position % PAGE_SIZE]
            assert found == tokens[: position + 1], "a row reads what it would have computed"


def drawn_token(row: Sequence, position: int) -> int:
    """What the model draws; some rows end long before their last token."""
    return STOP if (row.row * 7 + position) % 11 == 0 else 1


def all_tokens(row: Sequence) -> tuple[int, ...]:
    """A row's tokens, those among them that are being drawn."""
    known = len(row.token_ids)
    return (*row.token_ids, *(drawn_token(row, known + i) for i in range(row.num_pending)))


class FusionAgainstSlots(RuleBasedStateMachine):
    """The model is the rows in the order of arrival, and the tokens that stand in the memory's slots."""

    @initialize(
        max_rows=st.integers(1, 5),
        spare=st.integers(0, 12),
        num_ahead=st.integers(0, 1),
        overtaking=st.integers(0, 3),
        runs=st.booleans(),
    )
    def start(self, max_rows: int, spare: int, num_ahead: int, overtaking: int, runs: bool) -> None:
        self.num_ahead = num_ahead
        self.overtaking = overtaking
        self.num_admitted: dict[int, int] = {}  # before a row, the first time
        self.at_work: deque[Plan] = deque()
        self.pages = Pages(NUM_PAGES, PAGE_SIZE, read_as_runs=runs)
        self.max_rows, self.step_tokens = max_rows, max_rows + spare
        self.fusion = Fusion(self.pages, max_rows=max_rows, step_tokens=self.step_tokens, overtaking_rows=overtaking)
        self.slots = Slots()
        self.rows: list[Sequence] = []
        self.num_added = 0

    # Few tokens and a common beginning, so that rows share pages, whole ones and parts.
    @rule(
        num_common=st.integers(0, 24),
        prompt=st.lists(st.integers(1, 2), min_size=1, max_size=16),
        max_tokens=st.integers(1, 20),
        data=st.data(),
    )
    def add(self, num_common: int, prompt: list[int], max_tokens: int, data: st.DataObject) -> None:
        num_output = data.draw(st.integers(0, max_tokens - 1))
        self.num_added += 1
        token_ids = (*[7] * num_common, *prompt)
        row = Sequence(self.num_added, token_ids, (1,) * num_output, plain_params(max_tokens), frozenset())
        row.stop_ids = frozenset({STOP})
        row.reads_tokens = data.draw(st.booleans())
        self.rows.append(row)
        self.fusion.add(self.rows[-1])

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        gone = data.draw(st.sets(st.integers(0, self.num_added + 1), max_size=3))
        self.fusion.remove(gone)
        self.rows = [row for row in self.rows if row.row not in gone]

    @rule()
    def step(self) -> None:
        running = self.fusion.running
        decoding = {row.row for row in running if row.num_tokens_left == 1 and not row.must_wait}
        self.fusion.greatest_lengths()
        another_could_begin = self.another_could_begin()
        plan = self.fusion.plan(self.step_tokens)
        planned = [chunk.sequence.row for chunk in plan.chunks]
        if self.overtaking:
            self.note_overtaking()

        assert len(planned) == len(set(planned)) <= self.max_rows
        num_tokens = sum(chunk.num_tokens for chunk in plan.chunks)
        assert num_tokens == self.step_tokens if another_could_begin else num_tokens <= self.step_tokens
        assert all(1 <= chunk.num_tokens <= chunk.sequence.num_tokens_left for chunk in plan.chunks)
        if not self.fusion.awaits_tokens:
            assert bool(planned) == bool(self.rows), "a step with rows computes something"
        if self.rows and not self.rows[0].must_wait:
            assert self.rows[0].row in planned, "the oldest row always goes on"
        preempted = {row.row for row in running if row not in self.fusion.running}
        assert decoding <= {*planned, *preempted}, "no decoding row is left out, unless it gave its pages back"
        self.check_pages(plan)
        self.fusion.advance(plan)
        self.at_work.append(plan)
        while len(self.at_work) > self.num_ahead or (self.at_work and not planned):
            self.finish(self.at_work.popleft())

    def another_could_begin(self) -> bool:
        """Whether a row waits for which there is room beside those that are admitted."""
        running = self.fusion.running
        waiting = [row for row in self.rows if row not in running]
        if not waiting or len(running) == self.max_rows or any(row.num_pending for row in waiting):
            return False
        num_free = self.pages.num_available - sum(self.pages.num_missing(row.pages, row.token_ids) for row in running)
        return num_free >= max(self.pages.num_missing(row.pages, row.token_ids) for row in waiting)

    def note_overtaking(self) -> None:
        """From now on the rows stand in the order in which they were admitted, those that were not behind them."""
        for row in self.fusion.running:
            self.num_admitted.setdefault(row.row, len(self.num_admitted))
        self.rows.sort(key=lambda row: self.num_admitted.get(row.row, self.num_added + row.row))
        for overtaken, place in self.num_admitted.items():
            overtook = [other for other, before in self.num_admitted.items() if other > overtaken and before < place]
            assert len(overtook) <= self.overtaking

    def finish(self, plan: Plan) -> None:
        sampling = [chunk for chunk in plan.chunks if chunk.samples]
        draws = [Draw(chunk.sequence, drawn_token(chunk.sequence, chunk.end)) for chunk in sampling]
        known = {row.row for row in self.rows}
        tokens = settle(draws, self.fusion).tokens
        assert {row for row, _, _ in tokens} <= known, "nobody hears of a row that has ended"
        self.rows = [row for row in self.rows if self.fusion.knows(row.row)]
        assert {row for row, _, finish in tokens if finish} == known - {row.row for row in self.rows}

    def check_pages(self, plan: Plan) -> None:
        running = list(self.fusion.running)
        assert not any(row.pages.page_ids for row in self.rows if row not in running), "who waits holds nothing"
        assert running == self.rows[: len(running)], "rows are admitted in the order of arrival, and leave from the end"
        assert len({page for row in running for page in row.pages.page_ids}) == self.pages.num_used
        users = [page for row in running for page in set(row.pages.page_ids)]
        for chunk in plan.chunks:
            written = chunk.sequence.pages.page_ids[chunk.start // PAGE_SIZE :]
            assert written
            assert all(users.count(page) == 1 for page in written), "no page is written that two rows use"
        self.slots.apply(plan)
        for chunk in plan.chunks:
            self.slots.check(chunk.sequence, chunk.end)

    def teardown(self) -> None:
        if not hasattr(self, "fusion"):
            return
        # Alone, each row takes one step a token at most, and the oldest one goes on whatever the others do.
        for _ in range(2 * sum(row.num_slots for row in self.rows) + 2):
            if self.rows or self.at_work:
                self.step()
        assert not self.rows, "every row ends"
        assert not self.fusion.has_rows
        assert self.pages.num_used == 0


FusionAgainstSlots.TestCase.settings = settings(max_examples=150, stateful_step_count=30)
test_every_plan_keeps_budget_and_pages_and_every_row_ends = FusionAgainstSlots.TestCase
