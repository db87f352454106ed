"""What a step's sampling brings, whichever device does it."""

from dataclasses import dataclass

from headrace.workers.engine.logprobs import Logprobs


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
