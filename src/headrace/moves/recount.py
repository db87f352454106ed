"""``recount``: totals that are wrong are put right. No move, for no move needs it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from headrace.errors import DecodeError
from headrace.moves.call import Argument

TOTALS = ("queued", "queued_tokens", "running", "running_tokens")


@dataclass(frozen=True, slots=True)
class RecountCall:
    """Replace totals by what was counted, if they still are what they were then; the answer says whether they were.

    Attributes:
        before: ``TOTALS`` as the queue had them.
        counted: the same, counted from the requests.
    """

    before: Mapping[str, int]
    counted: Mapping[str, int]
    move: Literal["recount"] = "recount"

    def arguments(self) -> list[Argument]:
        """See ``lua/recount.lua``."""
        return [totals[name] for totals in (self.before, self.counted) for name in TOTALS]

    def read(self, reply: object) -> bool:
        """Whether they were replaced."""
        if not isinstance(reply, int):
            raise DecodeError(f"recount answered {reply!r}")
        return bool(reply)
