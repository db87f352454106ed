import random
from collections import deque
from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from headrace.errors import ConfigurationError
from headrace.job import SamplingParams
from headrace.memory.pages import Pages
from headrace.workers.engine.fusion import Fusion
from headrace.workers.engine.plan import Plan
from headrace.workers.engine.runner import Draw
from headrace.workers.engine.sequence import Sequence
from headrace.workers.engine.settle import settle as settle_draws

NUM_PAGES, PAGE_SIZE = 15, 4
KV_TOKENS = NUM_PAGES * PAGE_SIZE
STOP = 2


def sequence(row: int, prompt: Iterable[int], max_tokens: int, num_output: int = 0) -> Sequence:
    params = SamplingParams(max_tokens, 0, 0.0, 0, 1.0, 0.0, 0, (), (), True)
    return Sequence(row, tuple(prompt), (1,) * num_output, params, frozenset())


def fresh(row: int, num_prompt: int, max_tokens: int) -> Sequence:
    """A row that shares its beginning with no other."""
    return sequence(row, range(row * 1000, row * 1000 + num_prompt), max_tokens)


def settle(plan: Plan, fusion: Fusion) -> None:
    sampling = [chunk.sequence for chunk in plan.chunks if chunk.samples]
    fusion.advance(plan)
    for row in sampling:
        row.num_pending -= 1
        row.token_ids.append(1)
    fusion.remove(row.row for row in sampling if row.num_output_tokens == row.params.max_tokens)


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
        row = sequence(self.num_added, [7] * num_common + prompt, max_tokens, num_output)
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
        plan = self.fusion.plan()
        planned = [chunk.sequence.row for chunk in plan.chunks]
        if self.overtaking:
            self.note_overtaking()

        assert len(planned) == len(set(planned)) <= self.max_rows
        assert sum(chunk.num_tokens for chunk in plan.chunks) <= self.step_tokens
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
        tokens = settle_draws(draws, self.fusion).tokens
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


def test_a_request_joins_the_running_rows_at_the_next_step() -> None:
    fusion = Fusion(Pages(16, 4), max_rows=4, step_tokens=8)
    fusion.add(fresh(1, 2, 10))
    settle(fusion.plan(), fusion)
    fusion.add(fresh(2, 3, 10))
    fusion.add(fresh(3, 2, 10))
    assert [(chunk.sequence.row, chunk.num_tokens) for chunk in fusion.plan().chunks] == [(1, 1), (2, 3), (3, 2)]


def test_a_finished_row_makes_room_for_the_next_step() -> None:
    fusion = Fusion(Pages(2, 4), max_rows=1, step_tokens=8)
    fusion.add(fresh(1, 7, 1))
    fusion.add(fresh(2, 7, 1))
    settle(fusion.plan(), fusion)
    assert [chunk.sequence.row for chunk in fusion.plan().chunks] == [2]


def test_rows_that_run_longer_begin_earlier_but_overtake_nobody_for_ever() -> None:
    fusion = Fusion(Pages(512, 4), max_rows=1, step_tokens=64, overtaking_rows=2)
    for row, max_tokens in ((1, 1), (2, 5), (3, 9), (4, 9), (5, 2), (6, 3)):
        fusion.add(fresh(row, 4, max_tokens))
    begun: list[int] = []
    while fusion.has_rows:
        plan = fusion.plan()
        begun += [chunk.sequence.row for chunk in plan.chunks if chunk.is_prefill]
        settle(plan, fusion)
    # 3 and 4 overtake the first two, who then come first; nothing keeps 6 from overtaking 5.
    assert begun == [3, 4, 1, 2, 6, 5]


def test_rows_that_run_longest_begin_early_though_they_come_one_by_one() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(100, 1000) for _ in range(100)]
    fusion = Fusion(Pages(100_000, 4), max_rows=100, step_tokens=256, overtaking_rows=99)
    begun: list[int] = []
    for step in range(1000):
        if step < 50:  # two a step, whose prompts take two steps and more
            for row in (2 * step, 2 * step + 1):
                fusion.add(fresh(row, 300, lengths[row]))
        plan = fusion.plan()
        begun += [chunk.sequence.row for chunk in plan.chunks if chunk.is_prefill and not chunk.start]
        settle(plan, fusion)
    assert sorted(begun) == list(range(100))
    longest = sorted(range(100), key=lambda row: -lengths[row])[:30]
    assert set(longest) <= set(begun[:60]), "nobody who runs long begins late"


def test_prompts_that_are_in_memory_already_do_not_keep_others_from_beginning() -> None:
    fusion = Fusion(Pages(10_000, 4), max_rows=64, step_tokens=128)
    for part in range(2):
        for row in range(20):
            fusion.add(sequence(100 * part + row, [*range(row * 1000, row * 1000 + 100), part], 1))
        num_steps = 0
        while fusion.has_rows:
            settle(fusion.plan(), fusion)
            num_steps += 1
    assert num_steps == 1, "20 prompts of 101 tokens lack one or a few each"


def test_prompts_of_4000_tokens_delay_no_decoding_row_by_more_than_one_chunk() -> None:
    """The trace: each step computes every decoding row's token, and never more than the budget in all."""
    fusion = Fusion(Pages(2048, 16), max_rows=16, step_tokens=256)
    for row in range(4):
        fusion.add(fresh(row, 5, 200))
    settle(fusion.plan(), fusion)
    trace = []
    for step in range(100):
        if step % 15 == 0:
            fusion.add(fresh(100 + step, 4000, 50))
        plan = fusion.plan()
        lengths = {chunk.sequence.row: chunk.num_tokens for chunk in plan.chunks}
        assert all(lengths[row] == 1 for row in range(4))
        trace.append(sum(lengths.values()))
        settle(plan, fusion)
    assert max(trace) == 256, "no step is longer than one bounded chunk makes it"
    assert fusion.num_prefilled_tokens > 6 * 3900


def test_rows_whose_last_token_is_being_drawn_neither_bound_nor_shorten_the_next_step() -> None:
    asked: list[int] = []

    def budget(num_decoding: int) -> int:
        asked.append(num_decoding)
        return 16

    fusion = Fusion(Pages(64, 4), max_rows=8, step_tokens=16, budget=budget)
    for row in range(4):
        fusion.add(fresh(row, 8, 1))
    first = fusion.plan()
    fusion.advance(first)
    ahead = fusion.plan()
    assert [[chunk.sequence.row for chunk in plan.chunks] for plan in (first, ahead)] == [[0, 1], [2, 3]]
    assert set(asked) == {0}


def test_the_youngest_row_gives_way_and_the_oldest_goes_on_when_pages_run_out() -> None:
    pages = Pages(6, 4)
    fusion = Fusion(pages, max_rows=4, step_tokens=16)
    rows = [fresh(row, 4, 16) for row in (1, 2)]
    for row in rows:
        fusion.add(row)
    ends: list[int] = []
    while fusion.has_rows:
        settle(fusion.plan(), fusion)
        ends += [row.row for row in rows if row.row not in ends and not fusion.knows(row.row)]
    assert ends == [1, 2]
    assert fusion.num_preemptions == 1
    assert all(row.num_output_tokens == 16 for row in rows)
    assert pages.num_used == 0


@pytest.mark.parametrize("num_own", [0, 1, 2])
def test_rows_that_begin_alike_and_arrive_at_once_do_the_work_of_one(num_own: int) -> None:
    fusion = Fusion(Pages(512, 16), max_rows=32, step_tokens=300)
    for row in range(32):
        fusion.add(sequence(row, [*range(1000), *(5000 + row for _ in range(num_own))], 4))
    while fusion.has_rows:
        settle(fusion.plan(), fusion)
    assert fusion.num_prefilled_tokens <= 1.1 * (1000 + num_own)
    assert fusion.num_preemptions == 0


def test_a_row_that_comes_back_finds_what_it_had_computed() -> None:
    fusion = Fusion(Pages(64, 4), max_rows=1, step_tokens=64)
    for _ in range(2):
        fusion.add(sequence(1, range(30), 4))
        while fusion.has_rows:
            settle(fusion.plan(), fusion)
    assert fusion.num_prefilled_tokens == 30 + 1


def test_a_budget_that_cannot_hold_all_decoding_rows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="step_tokens"):
        Fusion(Pages(2, 4), max_rows=3, step_tokens=2)


def test_what_a_step_is_prepared_for_changes_seldom_while_rows_end_one_by_one() -> None:
    fusion = Fusion(Pages(10_000, PAGE_SIZE), max_rows=200, step_tokens=400)
    for row in range(200):
        fusion.add(fresh(row, 1, max_tokens=1 + row))
    bounds = []
    while fusion.has_rows:
        bounds.append(fusion.greatest_lengths())
        plan = fusion.plan()
        assert len(plan.chunks) <= min(bounds[-1]) <= max(bounds[-1]) < 2 * len(plan.chunks)
        settle(plan, fusion)
    assert len(bounds) == 200
    assert len(set(bounds)) < 10
