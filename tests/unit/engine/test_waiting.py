import random
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.testing.plain_params import plain_params
from headrace.workers.engine.sequence import Sequence
from headrace.workers.engine.waiting import Waiting


def row(number: int, max_tokens: int) -> Sequence:
    return Sequence(number, (1,), (), plain_params(max_tokens), frozenset())


def begin(waiting: Waiting) -> int:
    sequence = waiting.first()
    waiting.begin()
    return sequence.row


@given(st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1), st.integers(0, 12))
def test_the_longest_begins_unless_the_oldest_has_been_overtaken_often(
    arrivals: list[list[int]], overtaking_rows: int
) -> None:
    waiting = Waiting(overtaking_rows)
    lengths: list[int] = []
    left: dict[int, int] = {}  # who waits, and how long they run
    overtaken: dict[int, int] = {}
    while arrivals or left:
        for max_tokens in arrivals.pop(0) if arrivals else ():
            waiting.add(row(len(lengths), max_tokens))
            left[len(lengths)] = max_tokens
            overtaken[len(lengths)] = 0
            lengths.append(max_tokens)
        if not left:
            continue
        oldest, longest = min(left), min(left, key=lambda number: (-left[number], number))
        most = min(overtaking_rows, len(left))
        begun = begin(waiting)
        assert begun == (oldest if overtaken[oldest] >= most else longest)
        del left[begun]
        for number in left:
            overtaken[number] += number < begun
    assert max(overtaken.values(), default=0) <= overtaking_rows
    assert not len(waiting)


@pytest.mark.parametrize("at_once", [1, 4, 200])
def test_of_many_rows_the_longest_begin_in_order_however_they_trickle_in(at_once: int) -> None:
    rng = random.Random(0)
    waiting, lengths = Waiting(overtaking_rows=255), [rng.randint(100, 1000) for _ in range(200)]
    begun: list[int] = []
    come = 0
    while len(begun) < 200:
        for number in range(come, min(come + at_once, 200)):
            waiting.add(row(number, lengths[number]))
        come += at_once
        if come % 4 == 0 or come >= 200:  # one begins while four come
            begun.append(begin(waiting))
    in_order = sorted(range(200), key=lambda number: -lengths[number])
    early = begun[50:100]
    assert early == [number for number in in_order if number in early]
    assert set(in_order[:60]) <= set(begun[:110])


@pytest.mark.parametrize("num_waiting", [1, 5, 100])
def test_a_short_row_is_not_overtaken_by_all_that_keep_coming(num_waiting: int) -> None:
    numbers, waiting = count(1), Waiting(overtaking_rows=255)
    for _ in range(num_waiting):
        waiting.add(row(next(numbers), 9))
    begin(waiting)
    waiting.add(row(0, 1))
    begun: list[int] = []
    while 0 not in begun:
        begun.append(begin(waiting))
        waiting.add(row(next(numbers), 9))
    # Those before it, each of which may be overtaken, and those who overtake it.
    assert len(begun) <= 2 * num_waiting


def test_who_gives_way_is_overtaken_by_nobody() -> None:
    waiting = Waiting(overtaking_rows=9)
    for number, max_tokens in ((1, 5), (2, 9), (3, 7)):
        waiting.add(row(number, max_tokens))
    first = waiting.first()
    waiting.begin()
    waiting.put_first(first)
    waiting.add(row(4, 100))
    assert [begin(waiting) for _ in range(4)] == [2, 4, 1, 3]


def test_rows_that_are_dropped_are_gone_wherever_they_stand() -> None:
    waiting = Waiting(overtaking_rows=1)
    rows = [row(number, 1) for number in range(6)]
    for each in rows:
        waiting.add(each)
    for each in rows[:2]:
        assert begin(waiting) == each.row
    assert not waiting.knows(0)
    for each in reversed(rows[:2]):
        waiting.put_first(each)
    waiting.remove({1, 3, 77})
    assert [each.has_ended for each in rows] == [False, True, False, True, False, False]
    assert [waiting.knows(each.row) for each in rows] == [not each.has_ended for each in rows]
    assert [begin(waiting) for _ in range(len(waiting))] == [0, 2, 4, 5]
