import gc
from collections.abc import Iterator

import pytest

from headrace.workers.garbage import look_at_all, look_seldom


class Ring:
    """Garbage as soon as nobody knows it, and for reference counts never."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


def num_looks() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def test_what_is_there_is_looked_at_no_more_until_all_is() -> None:
    before = [Ring() for _ in range(10)]
    look_seldom()
    assert not any(type(found) is Ring for found in gc.get_objects())
    before.clear()
    assert gc.collect() == 0
    look_at_all()
    assert not any(type(found) is Ring for found in gc.get_objects())
    assert gc.get_freeze_count() == 0


def test_thousands_of_objects_that_stay_are_no_reason_to_look_but_tens_of_thousands_are() -> None:
    look_seldom()
    begin, staying = num_looks(), [[number] for number in range(5_000)]
    assert num_looks() == begin
    staying += [[number] for number in range(30_000)]
    assert num_looks() > begin
