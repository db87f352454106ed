"""A step's rotations: the angles of its tokens, made once for all layers (``cuda/rotary_kv.cu``)."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import integer_type, require
from headrace.kernels.launch import Kernel, load

_THREADS = 64


@dataclass(frozen=True, slots=True)
class Rotary:
    """Angles of a step's tokens, from ``rotary_table``, and how heads are rotated.

    Attributes:
        cosines: fp32 ``[num_tokens, rotary_dim / 2]``.
        sines: the same.
        interleaved: whether neighbours rotate against each other, else the first half against the second.
    """

    cosines: Tensor
    sines: Tensor
    interleaved: bool = False

    def __post_init__(self) -> None:
        for name, table in (("cosines", self.cosines), ("sines", self.sines)):
            require(table, name, self.cosines.shape, torch.float32)

    def turns_halves(self, head_dim: int) -> bool:
        """Whether the whole of a head is rotated, its first half against the second."""
        return not self.interleaved and 2 * self.cosines.shape[1] == head_dim

    def behind(self, num_tokens: int) -> "Rotary":
        """Give the angles of the tokens behind the first ones."""
        return Rotary(self.cosines[num_tokens:], self.sines[num_tokens:], self.interleaved) if num_tokens else self


def rotary_table(
    positions: Tensor,
    inv_freq: Tensor,
    *,
    scale: float = 1.0,
    interleaved: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
) -> Rotary:
    """Make the step's rotations, once for all layers.

    Args:
        positions: int32 or int64 ``[num_tokens]``.
        inv_freq: fp32 ``[rotary_dim / 2]``, radians a token.
        scale: multiplies cosines and sines (YaRN's attention factor).
        interleaved: kept with them, for ``rotary_kv``.
        out: where cosines and sines go, both fp32 ``[num_tokens, rotary_dim / 2]``. Default: new tensors.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    (num_tokens,) = positions.shape
    half = inv_freq.numel()
    require(positions, "positions", (num_tokens,), positions.dtype, alignment=positions.element_size())
    require(inv_freq, "inv_freq", (half,), torch.float32, alignment=4)
    cosines, sines = out or (inv_freq.new_empty(num_tokens, half), inv_freq.new_empty(num_tokens, half))
    rotary = Rotary(cosines, sines, interleaved)
    if cosines.shape != (num_tokens, half):
        raise KernelError(f"room for angles of {tuple(cosines.shape)}, not of {(num_tokens, half)}")
    count = num_tokens * half
    kernel = _table_kernel(positions.device, integer_type(positions, "positions"))
    kernel((-(-count // _THREADS),), (_THREADS,), cosines, sines, positions, inv_freq, count, half, scale)
    return rotary


@functools.cache
def _table_kernel(device: torch.device, position: str) -> Kernel:
    # The file's other kernel wants a head: any will do.
    shape = {
        "HEAD_DIM": 2,
        "ROTARY_DIM": 2,
        "INTERLEAVED": 0,
        "NORMED": 0,
        "VEC": 1,
        "LANES": 1,
        "TURNS": 1,
        "BLOCKS": 1,
    }
    return load(
        "rotary_kv", "rotary_table", "PPPPqif", device, DTYPE="float", THREADS=_THREADS, POSITION=position, **shape
    )
