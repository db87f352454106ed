import random
from collections.abc import Iterable

import pytest

from headrace.errors import ConfigurationError
from headrace.memory.pages import Pages
from headrace.testing.plain_params import plain_params
from headrace.workers.engine.fusion import Fusion
from headrace.workers.engine.plan import Plan
from headrace.workers.engine.sequence import Sequence


def sequence(row: int, prompt: Iterable[int], max_tokens: int) -> Sequence:
    return Sequence(row, tuple(prompt), (), plain_params(max_tokens), frozenset())


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


def test_rows_that_wait_for_a_beginning_leave_the_step_to_those_behind_them() -> None:
    fusion = Fusion(Pages(2048, 16), max_rows=64, step_tokens=300)
    for row in range(40):
        beginning = range(row // 4 * 1000, row // 4 * 1000 + 100)
        fusion.add(sequence(row, [*beginning, *(50_000 + 10 * row + i for i in range(10))], 1))
    num_tokens = []
    while fusion.has_rows:
        plan = fusion.plan()
        num_tokens.append(sum(chunk.num_tokens for chunk in plan.chunks))
        settle(plan, fusion)
    # Ten beginnings of 100 tokens, and 10 of each row's own.
    assert sum(num_tokens) == 10 * 100 + 40 * 10
    assert num_tokens[:4] == [300] * 4


def test_a_prompt_goes_on_whatever_the_budget() -> None:
    fusion = Fusion(Pages(16, 4), max_rows=2, step_tokens=8, budget=lambda num_others: 0)
    fusion.add(fresh(1, 3, 1))
    assert [chunk.num_tokens for chunk in fusion.plan().chunks] == [1]


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
    fusion = Fusion(Pages(10_000, 4), max_rows=200, step_tokens=400)
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


def test_nor_does_it_change_often_while_prompts_come_one_by_one() -> None:
    fusion = Fusion(Pages(10_000, 4), max_rows=200, step_tokens=400, budget=lambda num_others: num_others + 60)
    bounds = []
    for step in range(300):
        if step < 150:
            fusion.add(fresh(step, 50 + step, max_tokens=20 + step % 7))
        bounds.append(fusion.greatest_lengths())
        assert fusion.greatest_lengths(closely=True) <= bounds[-1]
        plan = fusion.plan(bounds[-1][0])
        assert sum(chunk.num_tokens for chunk in plan.chunks) <= bounds[-1][0]
        settle(plan, fusion)
    assert len(set(bounds)) < 20
