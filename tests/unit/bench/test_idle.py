import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.bench.idle import idle_share
from headrace.errors import MeasurementError

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=12)


@given(SPANS)
def test_idle_is_every_moment_that_no_span_covers(drawn: list[tuple[int, int]]) -> None:
    spans = sorted((float(begin), float(begin + length)) for begin, length in drawn)
    first, last = int(spans[0][0]), int(max(end for _, end in spans))
    covered = sum(any(begin <= moment < end for begin, end in spans) for moment in range(first, last))
    assert idle_share(spans) == pytest.approx(1 - covered / (last - first))


def test_long_gaps_can_be_left_out() -> None:
    spans = [(0.0, 10.0), (12.0, 20.0), (15.0, 18.0), (30.0, 40.0)]
    assert idle_share(spans, most=10.0) == pytest.approx(2 / 40)
    assert idle_share(spans, most=10.1) == pytest.approx(12 / 40)


def test_without_spans_there_is_nothing_to_say() -> None:
    with pytest.raises(MeasurementError, match="noted nothing"):
        idle_share([])
