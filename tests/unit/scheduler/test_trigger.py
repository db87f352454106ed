"""When a window is handed over, on a clock that the test moves."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config import Settings, Trigger
from headrace.workers.scheduler.trigger import Patience, Waiting

LAZY = Patience("lazy", window=4, lazy_timeout_ms=50, latency_goal_ms=200)
HALF_GOAL = Patience("half_goal", window=4, lazy_timeout_ms=50, latency_goal_ms=200)
HUNGRY = Patience("hungry", window=4, lazy_timeout_ms=50, latency_goal_ms=200)


def handed_over(patience: Patience, arrivals_ms: list[int], cost_ms: float = 30.0, slack_ms: int | None = None) -> int:
    """The moment, on a clock of whole ms, at which the first requests go."""
    for now_ms in range(10_000):
        came = [at for at in arrivals_ms if at <= now_ms]
        if not came:
            continue
        latest = None if slack_ms is None else came[0] + slack_ms - cost_ms
        if patience.wait_ms(Waiting(len(came), came[0], cost_ms, latest), now_ms) <= 0:
            return now_ms
    raise AssertionError("nothing was ever handed over")


def test_a_hungry_scheduler_hands_over_at_once() -> None:
    assert handed_over(HUNGRY, [5, 6, 7]) == 5


def test_a_lazy_one_waits_for_its_timeout_from_the_oldest_request_on() -> None:
    assert handed_over(LAZY, [5]) == 55
    assert handed_over(LAZY, [5, 50, 54]) == 55


def test_a_full_window_ends_the_wait() -> None:
    assert handed_over(LAZY, [5, 6, 7, 20]) == 20
    assert handed_over(HALF_GOAL, [5, 6, 7, 20]) == 20


def test_a_deadline_ends_the_wait_while_it_can_still_be_met() -> None:
    assert handed_over(LAZY, [5], cost_ms=30, slack_ms=60) == 35
    assert handed_over(HALF_GOAL, [5], cost_ms=30, slack_ms=60) == 35


def test_half_the_latency_goal_is_for_waiting_and_computing() -> None:
    assert handed_over(HALF_GOAL, [5], cost_ms=30) == 75  # 70 of waiting and 30 of computing are half of 200
    assert handed_over(HALF_GOAL, [5], cost_ms=99) == 6
    assert handed_over(HALF_GOAL, [5], cost_ms=300) == 5, "a batch that takes longer anyway starts at once"


@given(
    st.sampled_from(get_args(Trigger)),
    st.builds(Waiting, st.integers(1, 8), st.integers(0, 500), st.floats(0, 500), st.none() | st.floats(0, 900)),
    st.integers(0, 500),
)
def test_a_promised_wait_is_neither_too_short_nor_too_long(trigger: Trigger, waiting: Waiting, since_ms: int) -> None:
    patience = Patience(trigger, window=4, lazy_timeout_ms=50, latency_goal_ms=200)
    now_ms = waiting.oldest_ms + since_ms
    wait_ms = patience.wait_ms(waiting, now_ms)
    assert patience.wait_ms(waiting, now_ms + wait_ms) == pytest.approx(0, abs=1e-6)
    if wait_ms > 1:
        assert patience.wait_ms(waiting, now_ms + wait_ms / 2) > 0


def test_settings_choose_the_trigger() -> None:
    found = Patience.of(Settings(trigger="half_goal", latency_goal_ms=80, lazy_timeout_ms=7, window=9, hand_over_ms=3))
    assert found == Patience("half_goal", 9, 7, 80, 3)
