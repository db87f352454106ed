"""One row in flight: its tokens, how far they are computed, and the memory it holds.

Plain state, no torch. ``fusion`` decides what of it is computed next, ``runner`` computes, ``settle`` moves it on.
"""

from headrace.job import SamplingParams
from headrace.memory.pages import RowPages


class Sequence:
    """A row, from admission to its last token.

    A row decodes when one token is left to compute (the one drawn last); more are a prompt, or a prompt and the
    tokens another worker drew. There is no other difference, hence no other state.

    Steps are started before the tokens of earlier ones are known. A row counts the tokens that are being drawn for it,
    and what is computed counts as computed as soon as it is started: whatever comes later runs later, too.

    Args:
        row: the courier's number for it.
        prompt_ids: at least one.
        output_ids: tokens generated before, elsewhere.
        params: how to sample.
        eos_ids: the model's own ends of sequence.
        reads_tokens: whether the host must know all of its tokens before the next one can be drawn.

    Attributes:
        token_ids: prompt, then output, as far as the host knows it.
        num_pending: tokens behind these that are being drawn.
        num_prompt_tokens: how many tokens are prompt.
        num_computed_tokens: how many are in the key-value memory, or will be when the steps at work are done.
        stop_ids: token ids that end the row.
        pages: its key-value memory; empty while it waits.
        has_ended: nobody wants its tokens any more.
    """

    __slots__ = (
        "__weakref__",
        "has_ended",
        "num_computed_tokens",
        "num_pending",
        "num_prompt_tokens",
        "pages",
        "params",
        "reads_tokens",
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
        *,
        reads_tokens: bool = False,
    ) -> None:
        self.row = row
        self.token_ids = [*prompt_ids, *output_ids]
        self.num_pending = 0
        self.num_prompt_tokens = len(prompt_ids)
        self.num_computed_tokens = 0
        self.params = params
        self.reads_tokens = reads_tokens
        self.has_ended = False
        self.stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos_ids)
        self.pages = RowPages(self.num_slots)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far, here and elsewhere, those being drawn among them: the position of the next draw."""
        return len(self.token_ids) + self.num_pending - self.num_prompt_tokens

    @property
    def num_tokens_left(self) -> int:
        """Tokens to compute before the next one can be drawn, >= 1."""
        return len(self.token_ids) + self.num_pending - self.num_computed_tokens

    @property
    def num_known_computed_tokens(self) -> int:
        """How many of ``token_ids`` are computed."""
        return min(self.num_computed_tokens, len(self.token_ids))

    @property
    def must_wait(self) -> bool:
        """Whether it cannot go on before a token that is being drawn is known: it may be the last one."""
        return self.num_pending > 0 and (self.reads_tokens or self.num_output_tokens >= self.params.max_tokens)

    @property
    def num_to_draw(self) -> int:
        """Tokens that it may still draw."""
        return self.params.max_tokens - self.num_output_tokens

    @property
    def num_slots(self) -> int:
        """Token slots that the row can ever need."""
        return self.num_prompt_tokens + self.params.max_tokens
