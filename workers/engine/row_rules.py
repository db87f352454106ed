"""What one request changes in its own logits before a token is chosen: biases, penalties, bans.

In this order, which is transformers' and vLLM's: biases, penalties, then the tokens that are forbidden here. A row
that asks for none of it has no rules, and costs nothing.
"""

from collections import defaultdict
from collections.abc import Sequence as TokenIds

import torch
from torch import Tensor

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
        self._bad_words = BadWords(params.bad_words)
        # The request may name stop ids that the model does not have.
        self._stop_ids = [token_id for token_id in sequence.stop_ids if 0 <= token_id < vocab_size]

    @classmethod
    def of(cls, sequence: Sequence, vocab_size: int) -> "RowRules | None":
        """The rules of a row; None where it has none."""
        params = sequence.params
        ruled = params.logit_bias or params.bad_words or params.min_tokens > 0 or Penalties.needed_by(sequence)
        return cls(sequence, vocab_size) if ruled else None

    def apply(self, logits: Tensor, sequence: Sequence) -> None:
        """Change ``logits``, fp32 ``[vocab]``, in place, for the token behind those that the row holds now."""
        if len(self._bias_ids):
            logits[self._bias_ids] += self._biases
        if self._penalties is not None:
            self._penalties.apply(logits, sequence)
        forbidden = self._bad_words.forbidden_behind(sequence.token_ids)
        if sequence.num_output_tokens < sequence.params.min_tokens:
            forbidden += self._stop_ids
        if forbidden:
            logits[forbidden] = -torch.inf


class BadWords:
    """Token sequences that must not be completed, found by the token before their last."""

    def __init__(self, words: TokenIds[tuple[int, ...]]) -> None:
        self._always = [word[0] for word in words if len(word) == 1]
        self._by_last: defaultdict[int, list[tuple[list[int], int]]] = defaultdict(list)
        for *prefix, last in words:
            if prefix:
                self._by_last[prefix[-1]].append((prefix, last))

    def forbidden_behind(self, token_ids: list[int]) -> list[int]:
        """Tokens that would complete a sequence behind ``token_ids``, prompt and output."""
        candidates = self._by_last.get(token_ids[-1], ())
        return self._always + [last for prefix, last in candidates if token_ids[-len(prefix) :] == prefix]
