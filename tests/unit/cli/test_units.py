"""Numbers as people read them."""

import pytest

from headrace.cli.units import duration


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, "-"),
        (999.4, "999 ms"),
        (59_940, "59.9 s"),
        (59_960, "1 min 0 s"),
        (779_900, "13 min 0 s"),
        (3_599_600, "1 h 0 min"),
        (7_260_000, "2 h 1 min"),
    ],
)
def test_a_time_never_shows_sixty_of_a_unit(ms: float | None, text: str) -> None:
    assert duration(ms) == text
