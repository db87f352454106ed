"""Addition in place: ``cuda/add.cu``."""

import functools

import torch
from torch import Tensor

from headrace.kernels.checks import element_type, require
from headrace.kernels.launch import Kernel, load
from headrace.kernels.rows import vector

_THREADS = 256


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
    _kernel(x.device, element_type(x, "x"), vec)((-(-num_vecs // _THREADS),), (_THREADS,), x, y, num_vecs)


@functools.cache
def _kernel(device: torch.device, element: str, vec: int) -> Kernel:
    return load("add", "add", "PPq", device, DTYPE=element, VEC=vec, THREADS=_THREADS)
