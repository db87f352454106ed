"""The server's clock, as last heard: deadlines are times of the server."""

import time


class ServerClock:
    """Follows the times that the server's answers carry."""

    def __init__(self) -> None:
        self._offset_ms: float | None = None

    def set(self, now_ms: int) -> None:
        """Take a time that has just come from the server."""
        self._offset_ms = now_ms - time.monotonic() * 1000

    def passed(self, deadline_ms: int) -> bool:
        """Whether a deadline (0 for none) is over; never true before the server's time is known."""
        if not deadline_ms or self._offset_ms is None:
            return False
        return time.monotonic() * 1000 + self._offset_ms >= deadline_ms
