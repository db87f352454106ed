"""One row in flight: its tokens, how far they are computed, and the memory it holds.

Plain state, no torch. ``fusion`` decides what of it is computed next, ``runner`` computes, ``settle`` moves it on.
"""

from headrace.job import SamplingParams
from headrace.memory.pages import RowPages


class Sequence:
    """A row, from admission to its last token.

    A row decodes when one token is left to compute (the one drawn last); more are a prompt, or a prompt and the
    tokens another worker drew. There is no other difference, hence no other state.

    Args:
        row: the courier's number for it.
        prompt_ids: at least one.
        output_ids: tokens generated before, elsewhere.
        params: how to sample.
        eos_ids: the model's own ends of sequence.

    Attributes:
        token_ids: prompt, then output.
        num_prompt_tokens: how many of them are prompt.
        num_computed_tokens: how many of them are in the key-value memory.
        stop_ids: token ids that end the row.
        pages: its key-value memory; empty while it waits.
    """

    __slots__ = (
        "__weakref__",
        "num_computed_tokens",
        "num_prompt_tokens",
        "pages",
        "params",
        "row",
        "stop_ids",
        "token_ids",
    )

    def __init__(
        self,
        row: int,
        prompt_ids: tuple[int, ...],
        output_ids: tuple[int, ...],
        params: SamplingParams,
        eos_ids: frozenset[int],
    ) -> None:
        self.row = row
        self.token_ids = [*prompt_ids, *output_ids]
        self.num_prompt_tokens = len(prompt_ids)
        self.num_computed_tokens = 0
        self.params = params
        self.stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos_ids)
        self.pages = RowPages(self.num_slots)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far, here and elsewhere: the position of the next draw."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_tokens_left(self) -> int:
        """Tokens to compute before the next one can be drawn, >= 1."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_slots(self) -> int:
        """Token slots that the row can ever need."""
        return self.num_prompt_tokens + self.params.max_tokens
