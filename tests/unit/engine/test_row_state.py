import random

from headrace.job import SamplingParams
from headrace.memory.pages import Pages
from headrace.workers.engine.fusion import Fusion
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.sequence import Sequence

PAGE_SIZE = 4


def sequence(row: int, num_prompt: int, max_tokens: int) -> Sequence:
    params = SamplingParams(max_tokens, 0, row % 3 * 0.5, row % 7, 1 - row % 5 / 8, row % 2 / 4, row, (), (), True)
    return Sequence(row, tuple(range(row * 100, row * 100 + num_prompt)), (), params, frozenset())


def step(fusion: Fusion, state: RowState, token_id: int) -> None:
    """One step as the runner and settle make it, and a check of what the device would have read."""
    plan = fusion.plan()
    sequences = [chunk.sequence for chunk in plan.chunks]
    places = state.enter(sequences).tolist()
    assert len(set(places)) == len(places)
    for row, place in zip(sequences, places, strict=True):
        assert state.position[place] == row.num_computed_tokens
        assert state.page_table[place, : len(row.pages.page_ids)].tolist() == row.pages.page_ids
        for name, value in state.sampling.values_of(row).items():
            assert getattr(state.sampling, name)[place] == value
        if row.num_tokens_left == 1:
            assert state.last_token[place] == row.token_ids[-1]
    sampling = [chunk.sequence for chunk in plan.chunks if chunk.samples]
    state.advance(sequences, [chunk.num_tokens for chunk in plan.chunks])
    state.last_token[state.places_of(sampling)] = token_id
    state.draw(sampling, [token_id] * len(sampling))
    fusion.advance(plan)
    for row in sampling:
        row.token_ids.append(token_id)
    fusion.remove(row.row for row in sampling if row.num_output_tokens == row.params.max_tokens)


def test_the_device_reads_what_the_host_knows_whoever_joins_leaves_and_gives_way() -> None:
    rng = random.Random(0)
    fusion = Fusion(Pages(14, PAGE_SIZE), max_rows=4, step_tokens=10)
    state = RowState(4, 14)
    for number in range(300):
        if rng.random() < 0.3:
            fusion.add(sequence(number + 1, rng.randint(1, 20), rng.randint(1, 20)))
        if rng.random() < 0.05:
            fusion.remove({rng.randint(1, number + 1)})
        if fusion.has_rows:
            step(fusion, state, number)
    assert fusion.num_preemptions > 5


def test_a_row_that_takes_a_number_used_before_draws_by_its_own_parameters() -> None:
    state = RowState(1, 1)
    for given in (4, 8):
        row = sequence(given, 3, 5)
        row.row = 1
        (place,) = state.enter([row]).tolist()
        assert state.sampling.seed[place] == row.params.seed
        assert state.sampling.top_k[place] == row.params.top_k


def test_a_row_that_ends_in_token_0_does_not_go_on_from_the_token_of_whoever_had_its_place() -> None:
    state = RowState(1, 1)
    for row, token_id in ((0, 7), (1, 0)):
        params = SamplingParams(1, 0, 0.0, 0, 1.0, 0.0, 0, (), (), True)
        (place,) = state.enter([Sequence(row, (token_id,), (), params, frozenset())]).tolist()
        assert state.last_token[place] == token_id


def test_while_rows_decode_the_host_writes_nothing_but_new_pages() -> None:
    fusion = Fusion(Pages(64, PAGE_SIZE), max_rows=4, step_tokens=40)
    state = RowState(4, 64)
    for row in range(4):
        fusion.add(sequence(row, 8, 40))
    step(fusion, state, 1)
    before = state.num_writes
    for number in range(16):
        step(fusion, state, number)
    assert state.num_writes - before == 4 * 16 // PAGE_SIZE
