"""How the rows in flight draw, in tensors that stay: a place each, written when a row enters it."""

import torch
from torch import Tensor

from headrace.workers.engine.sequence import Sequence

#: A temperature below fp32's smallest number is as greedy as that one, and not a division by zero.
_LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny


class SamplingState:
    """What rows ask for, and where their output begins.

    Numbers are held in fp32 on every device, so that all of them draw by the same numbers.

    Args:
        max_rows: places.
        device: of the tensors.

    Attributes:
        temperature: fp32 ``[max_rows]``; 0 takes the most probable token.
        top_k: int32 ``[max_rows]``; 0 keeps all.
        top_p: fp32 ``[max_rows]``; 1 keeps all.
        min_p: fp32 ``[max_rows]``; 0 keeps all.
        seed: int64 ``[max_rows]``.
        num_prompt_tokens: int64 ``[max_rows]``; a row's draws are numbered by its position, from here on.
    """

    def __init__(self, max_rows: int, device: torch.device | None = None) -> None:
        def column(dtype: torch.dtype) -> Tensor:
            return torch.zeros(max_rows, dtype=dtype, device=device)

        self.temperature = column(torch.float32)
        self.top_k = column(torch.int32)
        self.top_p = column(torch.float32)
        self.min_p = column(torch.float32)
        self.seed = column(torch.int64)
        self.num_prompt_tokens = column(torch.int64)

    def values_of(self, sequence: Sequence) -> tuple[tuple[Tensor, int | float], ...]:
        """What a row's place holds: each tensor, and the row's value in it."""
        params = sequence.params
        return (
            (self.temperature, max(params.temperature, _LEAST_TEMPERATURE) if params.temperature else 0.0),
            (self.top_k, params.top_k),
            (self.top_p, params.top_p),
            (self.min_p, params.min_p),
            (self.seed, params.seed),
            (self.num_prompt_tokens, sequence.num_prompt_tokens),
        )
