"""``remember``: an answer is kept for requests that come again."""

from dataclasses import dataclass
from typing import Literal

from headrace.config import Settings
from headrace.moves.call import Argument
from headrace.wire import Reason


@dataclass(frozen=True, slots=True)
class RememberCall:
    """An answer, in one chunk.

    Attributes:
        key: see ``headrace.cache_key``.
        num_tokens: in the answer.
        num_chars: length of its text.
        reason: why it ended, ``stop`` or ``length``.
        chunk: all of it, encoded.
        settings: how much is kept, and for how long.
    """

    key: str
    num_tokens: int
    num_chars: int
    reason: Reason
    chunk: bytes
    settings: Settings
    move: Literal["remember"] = "remember"

    def arguments(self) -> list[Argument]:
        """See ``lua/remember.lua``."""
        s = self.settings
        return [self.key, s.cache_life_ms, s.cache_entries, s.cache_bytes, self.num_tokens, self.num_chars, self.reason,
                self.chunk]  # fmt: skip

    def read(self, reply: object) -> bool:
        """Whether it was kept; one that is larger than the whole cache is not."""
        return reply == 1
