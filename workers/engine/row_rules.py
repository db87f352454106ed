"""What one request changes in its own logits before a token is chosen: biases, penalties, bans.

In this order, which is transformers' and vLLM's: biases, penalties, then the tokens that are forbidden here. A row
that asks for none of it has no rules, and costs nothing.
"""

import torch
from torch import Tensor

from headrace.workers.engine.forbidden import Forbidden
from headrace.workers.engine.penalties import Penalties
from headrace.workers.engine.sequence import Sequence


class RowRules:
    """One row's rules, kept as long as the row and moved on with it.

    Args:
        sequence: the row.
        vocab_size: of its logits.
    """

    def __init__(self, sequence: Sequence, vocab_size: int) -> None:
        params = sequence.params
        self._penalties = Penalties(sequence, vocab_size) if Penalties.needed_by(sequence) else None
        self._bias_ids = torch.tensor([token_id for token_id, _ in params.logit_bias], dtype=torch.int64)
        self._biases = torch.tensor([bias for _, bias in params.logit_bias])
        self._forbidden = Forbidden(sequence, vocab_size)

    @classmethod
    def of(cls, sequence: Sequence, vocab_size: int) -> "RowRules | None":
        """The rules of a row; None where it has none."""
        params = sequence.params
        ruled = params.logit_bias or Forbidden.needed_by(sequence) or Penalties.needed_by(sequence)
        return cls(sequence, vocab_size) if ruled else None

    def apply(self, logits: Tensor, sequence: Sequence) -> None:
        """Change ``logits``, fp32 ``[vocab]``, in place, for the token behind those that the row holds now."""
        if len(self._bias_ids):
            logits[self._bias_ids] += self._biases
        if self._penalties is not None:
            self._penalties.apply(logits, sequence)
        forbidden = self._forbidden.behind(sequence)
        if forbidden:
            logits[forbidden] = -torch.inf
