from hypothesis import given
from hypothesis import strategies as st

from headrace.producer.patience import Patience


@given(st.floats(0, 100), st.integers(1, 30))
def test_pauses_grow_to_a_limit_and_never_reach_beyond_the_end(until_s: float, num_failures: int) -> None:
    patience, now_s, longest_s = Patience(until_s), 0.0, 0.05
    for _ in range(num_failures):
        pause_s = patience.pause_s(now_s)
        assert 0 <= pause_s <= min(longest_s, until_s - now_s)
        assert pause_s >= longest_s / 2 or pause_s == until_s - now_s
        now_s, longest_s = now_s + pause_s, min(2 * longest_s, 2.0)
    patience.renew()
    assert patience.pause_s(now_s) <= 0.05


def test_no_patience_is_left_behind_the_end() -> None:
    assert Patience(3.0).left_s(1.0) == 2.0
    assert Patience(3.0).left_s(4.0) == 0.0
