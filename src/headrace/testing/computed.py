"""What a program of ``sanitized`` has computed on the GPU, beside what it should be."""

from typing import NamedTuple

import torch
from torch import Tensor


class Computed(NamedTuple):
    """A result on the GPU, what it is of, and what it should be."""

    what: str
    ours: Tensor
    truth: Tensor

    @property
    def is_right(self) -> bool:
        """Whether integers are the same, and numbers as near as those of 16 bits can be; tests are stricter."""
        ours, truth = self.ours.cpu(), self.truth
        if not ours.is_floating_point():
            return torch.equal(ours.long(), truth.long())
        return bool((ours.double() - truth.double()).abs().max() <= 2e-2 * truth.double().abs().max())


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Normal numbers on the CPU."""
    return torch.randn(shape).to(dtype)


def room(like: Tensor, *shape: int) -> Tensor:
    """A result on the GPU in which an element that is not written shows."""
    return torch.full(shape, torch.nan, dtype=like.dtype, device="cuda")
