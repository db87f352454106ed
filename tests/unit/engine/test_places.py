"""Steps on a device compute a token of every place: what is planned beside them must leave room for those, too."""

import random

from hypothesis import given
from hypothesis import strategies as st

from headrace.memory.pages import Pages
from headrace.testing.plain_params import plain_params
from headrace.workers.engine.fusion import Fusion
from headrace.workers.engine.places import Places
from headrace.workers.engine.plan import Plan
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.runner import Draw
from headrace.workers.engine.sequence import Sequence
from headrace.workers.engine.settle import settle
from headrace.workers.engine.step_work import StepWork

MAX_ROWS, SIZE = 12, 40


def num_computed(plan: Plan, places: list[int]) -> int:
    """What ``Packer.mixed`` packs, without padding."""
    num_decoding = sum(chunk.decodes for chunk in plan.chunks)
    num_prompt_tokens = sum(chunk.num_tokens for chunk in plan.chunks) - num_decoding
    return num_prompt_tokens + (1 + max(places) if num_decoding else 0)


@given(st.integers(0, 1 << 32), st.integers(1, 60))
def test_a_step_in_which_rows_decode_computes_no_more_than_its_size_and_fills_it(seed: int, num_pages: int) -> None:
    rng = random.Random(seed)
    rows = RowState(MAX_ROWS, 64)
    pages = Pages(40 + num_pages, 4, read_as_runs=False)
    fusion = Fusion(pages, max_rows=MAX_ROWS, step_tokens=64, budget=lambda _: SIZE, places=rows.places)
    num_added = 0
    for _ in range(60):
        for _ in range(rng.choice((0, 0, 0, 1, 1, 5))):
            num_added += 1
            prompt = tuple(rng.randrange(2, 10_000) for _ in range(rng.randint(2, 60)))
            fusion.add(Sequence(num_added, prompt, (), plain_params(rng.randint(1, 8)), frozenset()))
        fusion.remove({rng.randint(1, num_added)} if num_added and rng.random() < 0.1 else ())
        num_decoding, left = fusion.num_decoding, num_prompt_tokens_left(fusion)
        plan = fusion.plan()
        if not plan.chunks:
            continue
        computed = num_computed(plan, rows.enter(plan.chunks))
        fusion.advance(plan)
        if num_decoding and not plan.chunks[-1].decodes:
            work = StepWork.of(plan)
            assert computed <= min(SIZE, work.num_tokens + work.num_idle_tokens)
            if pages.num_available > MAX_ROWS and left > SIZE:
                assert computed >= SIZE - 2
        settle([Draw(chunk.sequence, 1) for chunk in plan.chunks if chunk.samples], fusion)


def num_prompt_tokens_left(fusion: Fusion) -> int:
    return sum(row.num_tokens_left for row in fusion.running if row.num_tokens_left > 1)


def test_rows_take_empty_places_first() -> None:
    places = Places({1, 2}, end=3)
    assert [places.num_new(row) for row in (1, 7, 8)] == [0, 0, 0]
    places.enter(7)
    places.enter(7)
    assert (places.num_new(7), places.num_new(8), places.end) == (0, 1, 3)
    places.enter(8)
    assert (places.num_new(8), places.end) == (0, 4)
