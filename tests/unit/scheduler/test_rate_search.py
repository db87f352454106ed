"""A search for a rate finds the one there is, from any guess, and gives up where there is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.testing.rate_search import critical_rate, percentile


@given(limit=st.floats(0.5, 500), guess=st.floats(0.5, 500), stride=st.floats(1.05, 3), precision=st.floats(1.005, 1.3))
def test_the_rate_found_holds_and_one_that_is_a_little_larger_does_not(
    limit: float, guess: float, stride: float, precision: float
) -> None:
    tried: list[float] = []

    def holds(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    found = critical_rate(holds, guess, stride=stride, precision=precision)
    assert found <= limit < found * precision * (1 + 1e-9)
    assert tried[0] == guess
    assert found in tried


def test_a_search_gives_up_where_nothing_holds_or_everything_does() -> None:
    with pytest.raises(ValueError, match="nothing holds"):
        critical_rate(lambda _: False, 100.0, stride=2.0, precision=1.1)
    with pytest.raises(ValueError, match="everything holds"):
        critical_rate(lambda _: True, 100.0, stride=2.0, precision=1.1)


@given(values=st.lists(st.floats(0, 1e6), min_size=1), share=st.floats(0.01, 1))
def test_a_percentile_is_one_of_the_values_and_the_smallest_that_so_many_keep_to(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values)
