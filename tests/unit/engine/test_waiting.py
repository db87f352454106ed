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


@given(st.lists(st.integers(1, 9), min_size=1), st.integers(0, 12))
def test_rows_that_come_together_begin_in_groups_the_longest_first(lengths: list[int], overtaking_rows: int) -> None:
    waiting = Waiting(overtaking_rows)
    for number, max_tokens in enumerate(lengths):
        waiting.add(row(number, max_tokens))
    begun = [begin(waiting) for _ in lengths]
    size = overtaking_rows + 1
    for first in range(0, len(lengths), size):
        group = range(first, min(first + size, len(lengths)))
        assert begun[first : first + size] == sorted(group, key=lambda number: (-lengths[number], number))
    assert not len(waiting)


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
    # The group at hand, then its own: those who had come when that one was through.
    assert len(begun) <= 2 * num_waiting


def test_who_gives_way_is_overtaken_by_nobody() -> None:
    waiting = Waiting(overtaking_rows=9)
    for number, max_tokens in ((1, 5), (2, 9), (3, 7)):
        waiting.add(row(number, max_tokens))
    first = waiting.first()
    waiting.begin()
    waiting.put_first(first)
    waiting.add(row(4, 100))
    assert [begin(waiting) for _ in range(4)] == [2, 3, 1, 4]


def test_rows_that_are_dropped_are_gone_wherever_they_stand() -> None:
    waiting = Waiting(overtaking_rows=1)
    rows = [row(number, 1) for number in range(5)]
    for each in rows:
        waiting.add(each)
    waiting.first()
    waiting.remove({1, 3, 77})
    assert [each.has_ended for each in rows] == [False, True, False, True, False]
    assert [begin(waiting) for _ in range(len(waiting))] == [0, 2, 4]
