"""How the rows in flight draw, in tensors that stay: a place each, written when a row enters it."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from headrace.workers.engine.sequence import Sequence
from headrace.workers.engine.state_memory import StateMemory

#: A temperature below fp32's smallest number is as greedy as that one, and not a division by zero.
_LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True)
class SamplingState:
    """What rows ask for, and where their output begins.

    Numbers are held in fp32 on every device, so that all of them draw by the same numbers.

    Attributes:
        temperature: fp32 ``[max_rows]``; 0 takes the most probable token.
        top_k: int32 ``[max_rows]``; 0 keeps all.
        top_p: fp32 ``[max_rows]``; 1 keeps all.
        min_p: fp32 ``[max_rows]``; 0 keeps all.
        seed: int64 ``[max_rows]``.
        num_prompt_tokens: int64 ``[max_rows]``; a row's draws are numbered by its position, from here on.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    num_prompt_tokens: Tensor

    @staticmethod
    def columns(max_rows: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """What a memory must hold."""
        return {
            "temperature": (torch.float32, (max_rows,)),
            "top_k": (torch.int32, (max_rows,)),
            "top_p": (torch.float32, (max_rows,)),
            "min_p": (torch.float32, (max_rows,)),
            "seed": (torch.int64, (max_rows,)),
            "num_prompt_tokens": (torch.int64, (max_rows,)),
        }

    @classmethod
    def of(cls, memory: StateMemory) -> Self:
        """The state that lies in a memory."""
        return cls(**{name: memory[name] for name in cls.columns(0)})

    @staticmethod
    def values_of(sequence: Sequence) -> dict[str, int | float]:
        """What a row's place holds."""
        params = sequence.params
        return {
            "temperature": max(params.temperature, _LEAST_TEMPERATURE) if params.temperature else 0.0,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "min_p": params.min_p,
            "seed": params.seed,
            "num_prompt_tokens": sequence.num_prompt_tokens,
        }
