"""What a step's sampling brings, whichever device does it."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from headrace.workers.engine.logprobs import Logprobs
from headrace.workers.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Sampled:
    """One step's tokens.

    Attributes:
        token_ids: a row each.
        valid: a row each, False where no token can be chosen (its logits are not numbers, or all are forbidden); its
            token id is then meaningless.
        logprobs: by index of the row, those that ask for them.
    """

    token_ids: list[int]
    valid: list[bool]
    logprobs: dict[int, Logprobs]


class TokenSampler(Protocol):
    """From logits to tokens. Keeps what rows need from step to step."""

    def sample(self, logits: Tensor, rows: Rows[Sequence]) -> Sampled:
        """Choose one token a row, and write it to where the next step reads it.

        Args:
            logits: ``[num_rows, vocab]``; overwritten.
            rows: whose logits these are: they have entered the state, all their tokens are computed, and nothing is
                chosen at this position yet.

        Returns:
            The tokens, on the host.
        """
