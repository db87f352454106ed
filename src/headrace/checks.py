"""Values that some process wrote into Redis, checked before anybody computes with them or shows them. Pure.

JSON and MessagePack carry more than a reader wants: numbers that are none, or of 400 digits, half characters, lists
where a name should be, and text that would move a terminal's cursor.
"""

import math

from headrace.errors import DecodeError

#: Beyond this a float cannot count, and nothing here is as large.
MOST = 1 << 53
_MAX_TEXT_CHARS = 1_024


def whole(value: object, what: str, least: int = 0, most: int = MOST) -> int:
    """The value, if it is a whole number within bounds; raises DecodeError, which names ``what``."""
    if type(value) is not int or not least <= value <= most:
        raise DecodeError(f"{what} is not a whole number from {least} to {most}")
    return value


def measure(value: object, what: str, most: float = MOST) -> float:
    """The value as a float, if it is a finite number, not negative and at most so large; raises DecodeError."""
    if type(value) not in (int, float) or not 0 <= value <= most:  # type: ignore[operator]  # nan is not
        raise DecodeError(f"{what} is not a number from 0 to {most:g}")
    return float(value)  # type: ignore[arg-type]


def text(value: object, what: str) -> str:
    """The value, if it is a short text that every terminal and every encoding can show; raises DecodeError."""
    if not isinstance(value, str) or len(value) > _MAX_TEXT_CHARS or not value.isprintable():
        raise DecodeError(f"{what} is not a printable text of at most {_MAX_TEXT_CHARS} characters")
    return value


def moment_ms(score: float, what: str) -> int:
    """A time (ms) from a sorted set, where somebody may have written an infinite one; raises DecodeError."""
    if not math.isfinite(score) or abs(score) > MOST:
        raise DecodeError(f"{what} is not a time")
    return int(score)
