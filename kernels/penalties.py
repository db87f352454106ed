"""Penalties on tokens that a row holds, on the device; sampling applies them: ``cuda/token_counts.cu``."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import require
from headrace.kernels.launch import Kernel, load

_THREADS = 512


@dataclass(frozen=True, slots=True)
class Penalties:
    """Penalties on tokens that have been there, and the counts that they rest on; all but the counts by place.

    Attributes:
        repetition: fp32 ``[num_places]``; 1 changes nothing.
        presence: fp32 ``[num_places]``; 0 changes nothing.
        frequency: fp32 ``[num_places]``; 0 changes nothing.
        counts: int16 ``[num_slots, vocab]``, see ``count_tokens``; sampling adds what it draws.
        slots: int32 ``[num_places]``, a row's line in ``counts``; -1: the row has no penalties.
    """

    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    counts: Tensor
    slots: Tensor

    def __post_init__(self) -> None:
        shape = self.slots.shape
        for name in ("repetition", "presence", "frequency"):
            require(getattr(self, name), name, shape, torch.float32, alignment=4)
        require(self.slots, "slots", shape, torch.int32, alignment=4)
        require(self.counts, "counts", self.counts.shape, torch.int16, alignment=4)
        if self.counts.shape[1] % 2:
            raise KernelError("counts has an odd number of columns; add one that no token uses")


def count_tokens(counts: Tensor, token_ids: Tensor, num_prompt_tokens: int) -> None:
    """Begin a row's counts: a token's count is how often it was generated, plus 0x8000 if the prompt has it.

    Args:
        counts: int16 ``[vocab]``, the row's line of ``Penalties.counts``; overwritten.
        token_ids: int64 ``[num_tokens]``, the prompt and what was generated after it.
        num_prompt_tokens: how many of them are the prompt.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    (num_tokens,) = token_ids.shape
    require(counts, "counts", (counts.shape[0] // 2 * 2,), torch.int16, alignment=4)
    require(token_ids, "token_ids", (num_tokens,), torch.int64, alignment=8)
    kernel = _kernel(counts.device)
    kernel((1,), (_THREADS,), counts, counts.shape[0], token_ids, num_tokens, num_prompt_tokens)


@functools.cache
def _kernel(device: torch.device) -> Kernel:
    return load("token_counts", "count_tokens", "PiPii", device, THREADS=_THREADS)
