import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from headrace.errors import ConfigurationError
from headrace.job import SamplingParams
from headrace.memory.extents import Extents
from headrace.workers.engine.fusion import Fusion, Plan
from headrace.workers.engine.sequence import Sequence

KV_TOKENS = 60


def sequence(row: int, num_prompt: int, max_tokens: int, num_output: int = 0) -> Sequence:
    params = SamplingParams(max_tokens, 0, 0.0, 0, 1.0, 0.0, 0, (), (), True)
    return Sequence(row, (1,) * num_prompt, (1,) * num_output, params, frozenset())


def settle(plan: Plan, fusion: Fusion) -> None:
    ended = []
    for chunk in plan.chunks:
        samples = chunk.samples
        chunk.sequence.num_computed_tokens += chunk.num_tokens
        if samples:
            chunk.sequence.token_ids.append(1)
        if chunk.sequence.num_output_tokens == chunk.sequence.params.max_tokens:
            ended.append(chunk.sequence.row)
    fusion.remove(ended)


class FusionAgainstLists(RuleBasedStateMachine):
    """The model is the rows in the order of arrival, and what each of them still has to compute."""

    @initialize(max_rows=st.integers(1, 5), spare=st.integers(0, 12))
    def start(self, max_rows: int, spare: int) -> None:
        self.extents = Extents(KV_TOKENS)
        self.max_rows, self.step_tokens = max_rows, max_rows + spare
        self.fusion = Fusion(self.extents, max_rows=max_rows, step_tokens=self.step_tokens)
        self.rows: list[Sequence] = []
        self.num_added = 0

    @rule(num_prompt=st.integers(1, 40), max_tokens=st.integers(1, 20), data=st.data())
    def add(self, num_prompt: int, max_tokens: int, data: st.DataObject) -> None:
        num_output = data.draw(st.integers(0, max_tokens - 1))
        self.num_added += 1
        self.rows.append(sequence(self.num_added, num_prompt, max_tokens, num_output))
        self.fusion.add(self.rows[-1])

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        gone = data.draw(st.sets(st.integers(0, self.num_added + 1), max_size=3))
        self.fusion.remove(gone)
        self.rows = [row for row in self.rows if row.row not in gone]

    @rule()
    def step(self) -> None:
        running_before = [row for row in self.rows if row.extent]
        decoding = {row.row for row in running_before if row.num_tokens_left == 1}
        plan = self.fusion.plan()
        planned = [chunk.sequence.row for chunk in plan.chunks]

        assert len(planned) == len(set(planned))
        assert sum(chunk.num_tokens for chunk in plan.chunks) <= self.step_tokens
        assert all(1 <= chunk.num_tokens <= chunk.sequence.num_tokens_left for chunk in plan.chunks)
        assert bool(planned) == bool(self.rows), "a step with rows computes something"
        assert decoding <= set(planned), "no decoding row is left out"
        self.check_admission()
        self.check_budget_is_used(plan)
        settle(plan, self.fusion)
        self.rows = [row for row in self.rows if self.fusion.knows(row.row)]
        assert len([row for row in self.rows if row.extent]) <= self.max_rows

    def check_admission(self) -> None:
        running = [row for row in self.rows if row.extent]
        assert running == self.rows[: len(running)], "rows are admitted in the order of arrival"
        slots = [slot for row in running if row.extent for slot in range(row.extent.start, row.extent.end)]
        assert len(slots) == len(set(slots)) == sum(row.num_slots for row in running)
        assert self.extents.num_free_tokens == KV_TOKENS - len(slots)
        if len(running) < min(self.max_rows, len(self.rows)):
            assert self.extents.reserve(self.rows[len(running)].num_slots) is None, "there was room for one more"

    def check_budget_is_used(self, plan: Plan) -> None:
        computed = {chunk.sequence.row: chunk.num_tokens for chunk in plan.chunks}
        left_out = [row for row in self.rows if row.extent and computed.get(row.row, 0) < row.num_tokens_left]
        if left_out:
            assert sum(computed.values()) == self.step_tokens

    def teardown(self) -> None:
        if not hasattr(self, "fusion"):
            return
        most_steps = sum(row.num_slots for row in self.rows)
        for _ in range(most_steps):
            if not self.rows:
                break
            self.step()
        assert not self.rows, "every row ends"
        assert not self.fusion.has_rows
        assert self.extents.num_free_tokens == KV_TOKENS


FusionAgainstLists.TestCase.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
test_every_plan_keeps_the_budget_and_every_row_ends = FusionAgainstLists.TestCase


def test_a_request_joins_the_running_rows_at_the_next_step() -> None:
    fusion = Fusion(Extents(64), max_rows=4, step_tokens=8)
    fusion.add(sequence(1, 2, 10))
    settle(fusion.plan(), fusion)
    fusion.add(sequence(2, 3, 10))
    assert [(chunk.sequence.row, chunk.num_tokens) for chunk in fusion.plan().chunks] == [(1, 1), (2, 3)]


def test_a_finished_row_makes_room_for_the_next_step() -> None:
    fusion = Fusion(Extents(8), max_rows=1, step_tokens=8)
    fusion.add(sequence(1, 7, 1))
    fusion.add(sequence(2, 7, 1))
    settle(fusion.plan(), fusion)
    assert [chunk.sequence.row for chunk in fusion.plan().chunks] == [2]


def test_a_long_prompt_comes_in_chunks_and_never_delays_a_decoding_row() -> None:
    fusion = Fusion(Extents(64), max_rows=4, step_tokens=5)
    fusion.add(sequence(1, 1, 20))
    settle(fusion.plan(), fusion)
    fusion.add(sequence(2, 11, 1))
    lengths = []
    while fusion.knows(2):
        plan = fusion.plan()
        lengths.append([(chunk.sequence.row, chunk.num_tokens, chunk.samples) for chunk in plan.chunks])
        settle(plan, fusion)
    assert lengths == [[(1, 1, True), (2, 4, False)], [(1, 1, True), (2, 4, False)], [(1, 1, True), (2, 3, True)]]


def test_a_budget_that_cannot_hold_all_decoding_rows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="step_tokens"):
        Fusion(Extents(8), max_rows=3, step_tokens=2)
