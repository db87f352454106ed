"""What one step computes. Pure."""

from dataclasses import dataclass
from typing import NamedTuple

from headrace.memory.pages import PageCopy
from headrace.workers.engine.sequence import Sequence


class Chunk(NamedTuple):
    """The next uncomputed tokens of a row, as they were when they were planned: the row itself moves on meanwhile.

    Attributes:
        sequence: the row.
        start: position of the first of them.
        num_tokens: how many.
        samples: whether the row's last token is among them, so that the next one is drawn.
        is_prefill: whether it is of a prompt, or of what another worker generated, and not the token drawn last.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool
    is_prefill: bool

    @classmethod
    def next_of(cls, sequence: Sequence, num_tokens: int) -> "Chunk":
        """The next ``num_tokens`` of a row."""
        num_left = sequence.num_tokens_left
        is_prefill = num_left > 1 or not sequence.num_output_tokens
        return cls(sequence, sequence.num_computed_tokens, num_tokens, num_tokens == num_left, is_prefill)

    @property
    def end(self) -> int:
        """Position behind its last token."""
        return self.start + self.num_tokens

    @property
    def decodes(self) -> bool:
        """Whether it is a row's last token alone."""
        return self.samples and self.num_tokens == 1


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: the chunks to compute together, a row at most once, and what must be copied before.

    Attributes:
        chunks: those that decode come first.
        copies: of pages.
        num_idle_tokens: tokens that the device may compute beside those of the chunks, at most; see ``places``.
    """

    chunks: tuple[Chunk, ...]
    copies: tuple[PageCopy, ...] = ()
    num_idle_tokens: int = 0
