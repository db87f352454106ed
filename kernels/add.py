"""Addition in place: ``cuda/add.cu``."""

import functools

import torch
from torch import Tensor

from headrace.kernels.checks import element_type, require
from headrace.kernels.launch import Kernel, load
from headrace.kernels.rows import vector

# Of a block: fewer where so few vectors are all that there is.
_THREADS, _FEW_THREADS, _FEW_VECS = 256, 128, 1 << 15


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
    threads = _FEW_THREADS if num_vecs <= _FEW_VECS else _THREADS
    kernels[threads]((-(-num_vecs // threads),), (threads,), x, y, num_vecs)


@functools.cache
def _kernels(device: torch.device, element: str, vec: int) -> dict[int, Kernel]:
    """By threads, together: which one a step takes follows from its number of tokens, and none should compile."""
    threads = (_THREADS, _FEW_THREADS)
    return {each: load("add", "add", "PPq", device, DTYPE=element, VEC=vec, THREADS=each) for each in threads}
