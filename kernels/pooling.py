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
_WARP = 32
# Threads of a block and tokens that each reads together. Several blocks share a multiprocessor, so that one reads while
# another adds up what it has read; few rows leave multiprocessors to themselves.
_MANY, _FEW = (384, 4), (1024, 8)


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
    most_threads, ahead = _FEW if num_rows <= open_device(x.get_device()).num_sms else _MANY
    vec = vector(width, x.element_size())
    threads = block_threads(width // vec, most_threads)
    kernel = _kernel(x.device, element_type(x, "x"), vec, threads, ahead, _POOLINGS[pooling], int(normalise))
    kernel((num_rows,), (threads,), out, x, starts, width)
    return out


def block_threads(num_vecs: int, most_threads: int) -> int:
    """Threads of a block, whole warps: as many tokens side by side as fit, with as few threads left over.

    Args:
        num_vecs: vectors of a token, each a thread's.
        most_threads: of a block, a multiple of 32.
    """
    tokens = max(1, most_threads // max(1, num_vecs))
    return min(most_threads, -(-max(1, tokens * num_vecs) // _WARP) * _WARP)


@functools.cache
def _kernel(
    device: torch.device, element: str, vec: int, threads: int, ahead: int, pooling: int, normalise: int
) -> Kernel:
    return load(
        "pooling",
        "pooling",
        "PPPi",
        device,
        DTYPE=element,
        VEC=vec,
        THREADS=threads,
        AHEAD=ahead,
        POOLING=pooling,
        NORMALISE=normalise,
    )
