"""What the kernels' wrappers ask of their tensors. A kernel checks nothing, so that these are the only guards."""

from collections.abc import Sequence

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.build import C_TYPES


def element_type(x: Tensor, name: str) -> str:
    """Return the C++ name of a tensor's elements.

    Raises:
        KernelError: the dtype is not fp32, fp16 or bf16.
    """
    try:
        return C_TYPES[x.dtype]
    except KeyError:
        raise KernelError(f"{name} has dtype {x.dtype}; the kernels take fp32, fp16 and bf16") from None


def require(x: Tensor | None, name: str, shape: Sequence[int], dtype: torch.dtype, *, alignment: int = 16) -> None:
    """Check an optional tensor's shape, dtype, contiguity, and that vectors of ``alignment`` bytes may be used on it.

    Raises:
        KernelError: it is otherwise.
    """
    if x is None or (
        x.shape == shape and x.dtype == dtype and x.is_contiguous() and x.data_ptr() % alignment == 0
    ):  # what launches ask some hundred times a step
        return
    if tuple(x.shape) != tuple(shape) or x.dtype != dtype:
        raise KernelError(f"{name} is {x.dtype} {tuple(x.shape)}, and should be {dtype} {tuple(shape)}")
    if not x.is_contiguous():
        raise KernelError(f"{name} is not contiguous")
    if x.data_ptr() % alignment:
        raise KernelError(f"{name} does not begin at a multiple of {alignment} bytes")


def integer_type(x: Tensor, name: str) -> str:
    """Return the C++ name of an index tensor's elements.

    Raises:
        KernelError: the dtype is neither int32 nor int64.
    """
    if x.dtype == torch.int64:
        return "int64_t"
    if x.dtype == torch.int32:
        return "int"
    raise KernelError(f"{name} has dtype {x.dtype}; the kernels take int32 and int64")
