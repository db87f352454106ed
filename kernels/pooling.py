"""A vector for each row of packed tokens: ``cuda/pooling.cu``."""

import functools

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import element_type, require
from headrace.kernels.device import open_device
from headrace.kernels.encoder_table import Pooling
from headrace.kernels.launch import Kernel, load
from headrace.kernels.rows import vector

_POOLINGS: dict[Pooling, int] = {"cls": 0, "last": 1, "mean": 2, "max": 3}
# Few rows leave multiprocessors to themselves.
_THREADS, _MOST_THREADS = 512, 1024


def pool(x: Tensor, starts: Tensor, pooling: Pooling, *, normalise: bool, out: Tensor | None = None) -> Tensor:
    """Pool each row, in fp32.

    Args:
        x: fp32, fp16 or bf16 ``[num_tokens, width]``, contiguous.
        starts: int32 ``[num_rows + 1]``, where each row's tokens begin, and where the last one's end.
        pooling: how.
        normalise: divide each vector by its length; by 1e-12, if it is shorter.
        out: where to. Default: a new tensor.

    Returns:
        fp32 ``[num_rows, width]``; zeros for a row without tokens.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    num_rows, width = starts.shape[0] - 1, x.shape[1]
    if num_rows < 0:
        raise KernelError("starts has no end of the last row")
    out = x.new_empty(num_rows, width, dtype=torch.float32) if out is None else out
    require(x, "x", x.shape, x.dtype)
    require(starts, "starts", (num_rows + 1,), torch.int32, alignment=4)
    require(out, "out", (num_rows, width), torch.float32)
    threads = _MOST_THREADS if num_rows <= open_device(x.get_device()).num_sms else _THREADS
    vec = vector(width, x.element_size())
    kernel = _kernel(x.device, element_type(x, "x"), vec, threads, _POOLINGS[pooling], int(normalise))
    kernel((num_rows,), (threads,), out, x, starts, width)
    return out


@functools.cache
def _kernel(device: torch.device, element: str, vec: int, threads: int, pooling: int, normalise: int) -> Kernel:
    return load(
        "pooling",
        "pooling",
        "PPPi",
        device,
        DTYPE=element,
        VEC=vec,
        THREADS=threads,
        POOLING=pooling,
        NORMALISE=normalise,
    )
