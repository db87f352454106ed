from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.memory import shuffle

CHUNK_PAGES = 3
USED = st.lists(st.none() | st.integers(0, CHUNK_PAGES), min_size=1, max_size=4)


def fewest_by_search(num_used: list[int | None], num_chunks: int, *, adjacent: bool) -> int | None:
    """Try every sequence of single moves, breadth first, until enough chunks are free; pages all look alike."""

    def is_goal(state: tuple[int | None, ...]) -> bool:
        free = [chunk for chunk, used in enumerate(state) if used == 0]
        if adjacent:
            return any(all(first + i in free for i in range(num_chunks)) for first in free)
        return len(free) >= num_chunks

    seen = {tuple(num_used)}
    frontier = list(seen)
    num_moves = 0
    while frontier:
        if any(is_goal(state) for state in frontier):
            return num_moves
        following = []
        for state in frontier:
            for source, before in enumerate(state):
                for target, there in enumerate(state):
                    if source != target and before and there is not None and there < CHUNK_PAGES:
                        moved = list(state)
                        moved[source], moved[target] = before - 1, there + 1
                        if tuple(moved) not in seen:
                            seen.add(tuple(moved))
                            following.append(tuple(moved))
        frontier = following
        num_moves += 1
    return None


@pytest.mark.parametrize("adjacent", [False, True])
@settings(max_examples=300)
@given(num_used=USED, num_chunks=st.integers(1, 3))
def test_no_sequence_of_moves_frees_the_chunks_with_fewer(
    adjacent: bool, num_used: list[int | None], num_chunks: int
) -> None:
    choose = shuffle.choose_run if adjacent else shuffle.choose
    chosen = choose(num_used, CHUNK_PAGES, num_chunks)
    fewest = fewest_by_search(num_used, num_chunks, adjacent=adjacent)
    if chosen is None:
        assert fewest is None
        return
    assert sum(num_used[chunk] or 0 for chunk in chosen) == fewest
    assert len(set(chosen)) == num_chunks
    assert all(num_used[chunk] is not None for chunk in chosen)
    if adjacent:
        assert chosen == tuple(range(chosen[0], chosen[0] + num_chunks))


@settings(max_examples=300)
@given(
    num_used=st.lists(st.none() | st.integers(0, 8), min_size=1, max_size=12),
    num_chunks=st.integers(1, 5),
)
def test_no_choice_of_chunks_has_fewer_used_pages(num_used: list[int | None], num_chunks: int) -> None:
    """More chunks than a search of all moves can do, against all choices."""
    num_free = sum(8 - used for used in num_used if used is not None)
    movable = [used for used in num_used if used is not None]
    sums = [sum(choice) for choice in combinations(movable, num_chunks) if num_free >= 8 * num_chunks]
    runs = [
        sum(used or 0 for used in run)
        for first in range(len(num_used) - num_chunks + 1)
        if None not in (run := num_used[first : first + num_chunks]) and num_free >= 8 * num_chunks
    ]
    for choose, costs in ((shuffle.choose, sums), (shuffle.choose_run, runs)):
        chosen = choose(num_used, 8, num_chunks)
        assert (None if chosen is None else sum(num_used[chunk] or 0 for chunk in chosen)) == min(costs, default=None)


def test_pages_move_into_the_fullest_chunks_first() -> None:
    num_used = [1, 5, None, 0, 3]
    chosen = shuffle.choose(num_used, 8, 2)
    assert chosen == (0, 3)
    assert list(shuffle.fill_order(num_used, chosen)) == [1, 4]
