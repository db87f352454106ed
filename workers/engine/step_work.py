"""What a step computed, as its price is learnt from it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.workers.engine.plan import Plan

#: A step teaches what prompts cost where at least this part of its tokens begins a row: attention to what was computed
#: before costs extra, and a step of decoding rows is no prefill.
_MIN_FRESH = 0.75
#: Rows count as equally long where padding them to the longest would add no more than this part.
_MAX_PADDING = 0.1


@dataclass(frozen=True, slots=True)
class StepWork:
    """The tokens of one step.

    Attributes:
        num_tokens: in all.
        num_fresh_tokens: of chunks that are the beginning of their row.
        prompts: (row, tokens) a row of which a part of the prompt was computed.
        shape: (length, rows) where it computed whole prompts of nearly one length and nothing else; else None.
        num_idle_tokens: tokens that the device computed beside these, at most, because its places were empty.
    """

    num_tokens: int = 0
    num_fresh_tokens: int = 0
    prompts: tuple[tuple[int, int], ...] = ()
    shape: tuple[int, int] | None = None
    num_idle_tokens: int = 0

    @property
    def teaches(self) -> bool:
        """Whether its time tells what prompts cost."""
        return bool(self.prompts) and self.num_fresh_tokens >= _MIN_FRESH * self.num_tokens

    @classmethod
    def of(cls, plan: Plan) -> "StepWork":
        """Of a plan that is not computed yet."""
        chunks = plan.chunks
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        prompts = tuple((c.sequence.row, c.num_tokens) for c in chunks if c.is_prefill)
        fresh = [chunk for chunk in chunks if not chunk.start]
        shape = None
        if len(fresh) == len(chunks) and all(chunk.samples for chunk in chunks):
            shape = shape_of([chunk.num_tokens for chunk in chunks])
        return cls(num_tokens, sum(chunk.num_tokens for chunk in fresh), prompts, shape, plan.num_idle_tokens)


def shape_of(lengths: Sequence[int]) -> tuple[int, int] | None:
    """(length, rows) of whole prompts of nearly one length; None of others, and of none."""
    if not lengths or max(lengths) * len(lengths) > sum(lengths) * (1 + _MAX_PADDING):
        return None
    return max(lengths), len(lengths)
