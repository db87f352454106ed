"""Addition in place: ``cuda/add.cu``."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.kernels.checks import element_type, require
from headrace.kernels.device import open_device
from headrace.kernels.launch import Kernel, Shared, load
from headrace.kernels.rows import vector


class _Blocks(NamedTuple):
    """How a sum is shared out.

    Attributes:
        threads: of a block, a vector each.
        shared: what a block asks for, and does not use: so no more than some run at once.
    """

    threads: int
    shared: Shared = Shared(0)


# Where so few vectors are all that there is, more blocks find more multiprocessors.
_FEW, _FEW_VECS = _Blocks(128), 1 << 15
_SOME = _Blocks(256)
# Six blocks a multiprocessor, in 64 of a Hopper's 228 KB, each with 1 KB of the system's: by 1,536 threads memory is
# read and written 0.3 to 0.5 % faster than by 2,048 (docs/bench/kernels.md). Not measured on other GPUs.
_MANY, _MANY_BYTES, _MANY_ARCH = _Blocks(256, Shared(9856, percent=28)), 1 << 26, "sm_9"


def add(x: Tensor, y: Tensor) -> None:
    """Add ``y`` into ``x``; the sum is rounded to their dtype once.

    Args:
        x: fp32, fp16 or bf16, contiguous.
        y: the same shape and dtype.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    require(x, "x", x.shape, x.dtype)
    require(y, "y", x.shape, x.dtype)
    vec = vector(x.numel(), x.element_size())
    num_vecs = x.numel() // vec
    kernels = _kernels(x.device, element_type(x, "x"), vec)
    blocks = _blocks(num_vecs, x.nbytes, open_device(x.get_device()).arch)
    grid = (-(-num_vecs // blocks.threads),)
    kernels[blocks](grid, (blocks.threads,), x, y, num_vecs, shared_bytes=blocks.shared.most_bytes)


def _blocks(num_vecs: int, num_bytes: int, arch: str) -> _Blocks:
    if num_vecs <= _FEW_VECS:
        return _FEW
    return _MANY if num_bytes >= _MANY_BYTES and arch.startswith(_MANY_ARCH) else _SOME


@functools.cache
def _kernels(device: torch.device, element: str, vec: int) -> dict[_Blocks, Kernel]:
    """By blocks, together: which a step takes follows from its number of tokens, and none should compile."""
    return {
        each: load(
            *("add", "add", "PPq", device),
            shared_bytes=each.shared,
            DTYPE=element,
            VEC=vec,
            THREADS=each.threads,
        )
        for each in (_FEW, _SOME, _MANY)
    }
