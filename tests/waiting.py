"""Waiting for what other threads and processes do."""

import time
from collections.abc import Callable

#: The limit is for what never comes, not for what comes late on a busy machine.
LIMIT_S = 120.0


def until(holds: Callable[[], object], timeout_s: float = LIMIT_S) -> None:
    """Ask again and again until something holds."""
    give_up_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < give_up_s, "it did not come about in time"
        time.sleep(0.005)
