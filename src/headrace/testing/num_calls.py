"""What some work costs the host, but for the clock: tests that gate on time fail when the machine is busy."""

import sys
from collections.abc import Callable
from types import FrameType


def num_calls(work: Callable[[], object]) -> int:
    """Count the functions that ``work`` calls, Python's and C's, at any depth; the same work gives the same number."""
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count
