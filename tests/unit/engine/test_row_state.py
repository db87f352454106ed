import random

from headrace.job import SamplingParams
from headrace.kernels.row_state import NextTokens
from headrace.memory.pages import Pages
from headrace.workers.engine.fusion import Fusion
from headrace.workers.engine.plan import Chunk
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.sequence import Sequence

PAGE_SIZE = 4


def sequence(row: int, num_prompt: int, max_tokens: int) -> Sequence:
    params = SamplingParams(max_tokens, 0, row % 3 * 0.5, row % 7, 1 - row % 5 / 8, row % 2 / 4, row, (), (), True)
    return Sequence(row, tuple(range(row * 100, row * 100 + num_prompt)), (), params, frozenset())


def step(fusion: Fusion, state: RowState, token_id: int) -> None:
    """One step as the runner and settle make it, and a check of what the device would have read."""
    plan = fusion.plan()
    all_decode = all(chunk.decodes for chunk in plan.chunks)
    places = state.enter(plan.chunks, below=len(plan.chunks) if all_decode else None)
    if all_decode:
        assert sorted(places) == list(range(len(places))), "rows that decode alone lie behind each other"
    assert len(set(places)) == len(places)
    given = NextTokens.empty(len(state.position))
    state.next_tokens(given)
    decoding = {place for place, chunk in zip(places, plan.chunks, strict=True) if chunk.decodes}
    assert {place for place in range(len(state.position)) if given.positions[place] >= 0} == decoding
    assert given.places is not None
    assert {place for place in given.places.tolist() if place >= 0} == decoding
    for chunk, place in zip(plan.chunks, places, strict=True):
        row = chunk.sequence
        assert state.position[place] == chunk.end, "where the next draw is counted from"
        assert state.place_of(row) == place
        assert state.page_table[place, : len(row.pages.page_ids)].tolist() == row.pages.page_ids
        for name, value in state.sampling.values_of(row).items():
            assert getattr(state.sampling, name)[place] == value
        if chunk.decodes:
            assert given.token_ids[place] == row.token_ids[-1]
            assert given.positions[place] == row.num_computed_tokens
            assert given.lengths[place] == row.num_computed_tokens + 1
    sampling = [chunk.sequence for chunk in plan.chunks if chunk.samples]
    for row in sampling:
        state.last_token[state.place_of(row)] = token_id
    fusion.advance(plan)
    for row in sampling:
        row.num_pending -= 1
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
        (place,) = state.enter([Chunk.next_of(row, 3)])
        assert state.sampling.seed[place] == row.params.seed
        assert state.sampling.top_k[place] == row.params.top_k


def test_a_row_that_ends_in_token_0_does_not_go_on_from_the_token_of_whoever_had_its_place() -> None:
    state = RowState(1, 1)
    for row, token_id in ((0, 7), (1, 0)):
        params = SamplingParams(1, 0, 0.0, 0, 1.0, 0.0, 0, (), (), True)
        (place,) = state.enter([Chunk.next_of(Sequence(row, (token_id,), (), params, frozenset()), 1)])
        assert state.last_token[place] == token_id


def test_while_rows_decode_the_host_writes_nothing_but_new_pages() -> None:
    fusion = Fusion(Pages(64, PAGE_SIZE), max_rows=4, step_tokens=40)
    state = RowState(4, 64)
    for row in range(4):
        fusion.add(sequence(row, 8, 40))
    step(fusion, state, 1)
    step(fusion, state, 2)  # from here on they are known to decode
    before = state.num_writes
    for number in range(16):
        step(fusion, state, number)
    assert state.num_writes - before == 4 * 16 // PAGE_SIZE
