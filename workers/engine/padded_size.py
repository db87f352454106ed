"""To which size a step with prompts is rounded up, so that one captured graph serves many steps. Pure arithmetic."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

from headrace.workers.engine.decode_graphs import padded_places
from headrace.workers.engine.plan import Chunk

#: Tokens of prompts are rounded up to multiples of it, few ones to one half: what a step of a small model computes
#: beyond its own tokens takes less time than the host takes to launch it.
TOKEN_STEP = 128
#: Chunks of prompts are rounded up to these: blocks of attention that find nothing to do cost a little, too.
_CHUNKS = (8, 64)


@dataclass(frozen=True, slots=True)
class PaddedSize:
    """What steps have in common that launch the same kernels with the same arguments.

    Attributes:
        num_places: places that rows may have.
        num_tokens: of prompts, behind those of decoding rows.
        num_chunks: of prompts, at most.
        decodes: whether places have a token each that may decode.
        samples: whether places have logits each.
    """

    num_places: int
    num_tokens: int
    num_chunks: int
    decodes: bool
    samples: bool

    @classmethod
    def of(cls, chunks: Rows[Chunk], places: Rows[int], max_places: int) -> "PaddedSize":
        """Round a step up.

        Args:
            chunks: those that decode first; not all of them.
            places: of their rows.
            max_places: that there are.
        """
        num_decoding = sum(chunk.decodes for chunk in chunks)
        num_tokens = sum(chunk.num_tokens for chunk in chunks) - num_decoding
        num_places = padded_places(1 + max(places), max_places)
        num_chunks = next((few for few in _CHUNKS if len(chunks) - num_decoding <= few), num_places)
        return cls(
            num_places,
            padded_tokens(num_tokens),
            min(num_chunks, num_places),
            num_decoding > 0,
            any(chunk.samples for chunk in chunks),
        )

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens in all, and logits."""
        first = self.num_places if self.decodes else 0
        return first + self.num_tokens, self.num_places if self.samples else 0


def padded_tokens(num_tokens: int) -> int:
    """Round a number of tokens of prompts up."""
    few = TOKEN_STEP // 2
    return few if num_tokens <= few else -(-num_tokens // TOKEN_STEP) * TOKEN_STEP
