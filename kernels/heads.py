"""How heads are normed and rotated, and how a head is split over threads: for all kernels that do it."""

import functools
from dataclasses import dataclass

from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import require
from headrace.kernels.rotary import Rotary
from headrace.kernels.rows import vector

_WARP = 32


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """RMSNorm of each query and key head, before the rotation.

    Attributes:
        query: ``[head_dim]``.
        key: ``[head_dim]``.
        eps: added to the mean square.
    """

    query: Tensor
    key: Tensor
    eps: float

    def __post_init__(self) -> None:
        for name, weight in (("query", self.query), ("key", self.key)):
            require(weight, name, self.query.shape, self.query.dtype)


@dataclass(frozen=True, slots=True)
class Heads:
    """How a head is normed and rotated, and split over threads: a specialisation, but for the dtype."""

    head_dim: int
    rotary_dim: int
    interleaved: bool
    normed: bool
    vec: int
    lanes: int


def heads_of(head_dim: int, rotary: Rotary | None, normed: bool, element_bytes: int) -> Heads:
    """Say how a head is split over threads.

    Raises:
        KernelError: it cannot be.
    """
    if rotary is None:
        return _split(head_dim, 0, False, normed, element_bytes)
    return _split(head_dim, 2 * rotary.cosines.shape[1], rotary.interleaved, normed, element_bytes)


@functools.cache
def _split(head_dim: int, rotary_dim: int, interleaved: bool, normed: bool, element_bytes: int) -> Heads:
    half, tail = rotary_dim // 2, (head_dim - rotary_dim) // 2
    if not 0 <= rotary_dim <= head_dim or rotary_dim % 2 or head_dim % 2:
        raise KernelError(f"{rotary_dim} dimensions of a head of {head_dim} cannot be rotated in pairs")
    vec = min(vector(part, element_bytes) for part in (half, tail) if part)
    lanes = 1 << (-(-head_dim // 2 // vec) - 1).bit_length()
    if lanes > _WARP:
        raise KernelError(f"a head of {head_dim}, {rotary_dim} of it rotated, does not fit a warp")
    return Heads(head_dim, rotary_dim, interleaved, normed, vec, lanes)
