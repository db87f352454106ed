"""What a batch costs beside computing it is told apart from what grows with it, and is not moved by single pauses."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.workers.costs.overhead import Overhead


def seen(batch_ms: float, share: float, own_ms: Sequence[float], noise_ms: float = 0.0) -> Overhead:
    """Batches of which each costs ``batch_ms``, and a share of its own computing, beside that."""
    overhead, pick = Overhead(), random.Random(1)
    for own in own_ms:
        overhead.observe(own, own + batch_ms + share * own + pick.uniform(0, 2 * noise_ms), 0.0)
    return overhead


@given(
    st.floats(0, 50),
    st.floats(0, 3),
    st.lists(st.integers(1, 400), min_size=24, max_size=128, unique=True),
)
def test_without_noise_it_is_found_whatever_grows_with_the_batches(
    batch_ms: float, share: float, own_ms: list[int]
) -> None:
    assert seen(batch_ms, share, own_ms).batch_ms(0.0) == pytest.approx(batch_ms, rel=1e-6, abs=1e-6)


def test_noise_and_pauses_leave_it_near() -> None:
    pick = random.Random(2)
    own_ms = [pick.uniform(5, 60) for _ in range(128)]
    overhead = seen(6.0, 0.3, own_ms, noise_ms=2.0)
    before = overhead.batch_ms(0.0)
    assert before == pytest.approx(6.0 + 2.0, abs=1.5)
    for _ in range(6):
        overhead.observe(20.0, 60_000.0, 0.0)
    assert overhead.batch_ms(0.0) == pytest.approx(before, abs=1.5)


def test_batches_that_are_alike_count_for_all_that_they_cost() -> None:
    assert seen(6.0, 0.5, [20.0] * 30).batch_ms(0.0) == pytest.approx(16.0)


def test_it_follows_a_machine_that_gets_other_work() -> None:
    pick = random.Random(3)
    overhead = seen(1.0, 0.0, [pick.uniform(5, 60) for _ in range(128)])
    for own in (pick.uniform(5, 60) for _ in range(128)):
        overhead.observe(own, own + 9.0, 0.0)
    assert overhead.batch_ms(0.0) == pytest.approx(9.0)


def test_of_few_batches_nothing_is_told_and_it_is_never_negative() -> None:
    assert seen(6.0, 0.0, [20.0] * 23).batch_ms(0.0) == 0.0
    overhead = Overhead()
    for own in range(1, 60):
        overhead.observe(float(own), own + max(0.0, own - 20.0), 0.0)
    assert overhead.batch_ms(0.0) == 0.0
    for own in range(1, 130):
        overhead.observe(float(own), own - 5.0, 0.0)
    assert overhead.batch_ms(0.0) == 0.0


def test_what_was_seen_in_a_busy_minute_does_not_price_the_idle_ones_behind_it() -> None:
    overhead = seen(80.0, 0.0, [20.0] * 128)
    assert overhead.batch_ms(59.0) == pytest.approx(80.0)
    assert overhead.batch_ms(61.0) == 0.0
