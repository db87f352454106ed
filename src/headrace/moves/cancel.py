"""``cancel``: a request ends now, wherever it is."""

from dataclasses import dataclass
from typing import Literal

from headrace.config import Settings
from headrace.moves.call import Argument
from headrace.moves.reply import read_texts


@dataclass(frozen=True, slots=True)
class CancelCall:
    """End a request now; the reply is the state it was in, or ``unknown``."""

    request_id: str
    settings: Settings
    move: Literal["cancel"] = "cancel"

    def arguments(self) -> list[Argument]:
        """See ``lua/cancel.lua``."""
        return [self.request_id, self.settings.tombstone_ttl_ms]

    def read(self, reply: object) -> str:
        """The state."""
        return read_texts([reply])[0]
