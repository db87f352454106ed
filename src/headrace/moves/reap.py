"""``reap``: requests whose time has come are queued again, expire, or are given up."""

from dataclasses import dataclass
from typing import Literal

from headrace.config import Settings
from headrace.errors import DecodeError
from headrace.moves.call import Argument

#: When reap looks again at a request that waits in its stream, and takes back a batch that no worker took.
RECHECK_MS = 60_000


@dataclass(frozen=True, slots=True)
class Reaped:
    """What a round of ``reap`` found.

    Attributes:
        num_seen: requests that were due.
        num_requeued: back in ``ready``, their worker or their batch being gone.
        num_expired: past their deadline.
        num_dead: given up.
        amnesty: workers keep their leases for now, because nobody reaped for too long.
        num_strays: ids that left ``ready``, because no queued request was behind them.
    """

    num_seen: int
    num_requeued: int
    num_expired: int
    num_dead: int
    amnesty: bool
    num_strays: int = 0


@dataclass(frozen=True, slots=True)
class ReapCall:
    """Look at the requests whose time has come."""

    limit: int
    settings: Settings
    move: Literal["reap"] = "reap"

    def arguments(self) -> list[Argument]:
        """See ``lua/reap.lua``.

        A broker that is away for a third of a lease leaves every worker, which renews after a third, a third to spare.
        """
        s = self.settings
        return [self.limit, s.max_strikes, s.lease_ms, s.lease_ms // 3, RECHECK_MS]

    def read(self, reply: object) -> Reaped:
        """Of six counts."""
        if not isinstance(reply, list):
            raise DecodeError(f"reap answered {reply!r}")
        seen, requeued, expired, dead, amnesty, strays = (int(count) for count in reply)
        return Reaped(seen, requeued, expired, dead, bool(amnesty), strays)
