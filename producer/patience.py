"""How long to wait for a server that went away, and how often to ask whether it is back. Pure but for the dice."""

import random

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0


class Patience:
    """Pauses between attempts: each up to twice as long as the one before, at random, so that clients do not march.

    Attributes:
        until_s: when it ends, by the monotonic clock.
    """

    def __init__(self, until_s: float) -> None:
        self.until_s = until_s
        self._pause_s = _FIRST_PAUSE_S

    def left_s(self, now_s: float) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.until_s - now_s)

    def pause_s(self, now_s: float) -> float:
        """The next pause; never beyond the end."""
        pause_s = self._pause_s * random.uniform(0.5, 1.0)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return min(pause_s, self.left_s(now_s))

    def renew(self) -> None:
        """The server answered: the next pause is a short one again."""
        self._pause_s = _FIRST_PAUSE_S
