"""Embedding gather: ``cuda/embedding.cu``."""

import functools

import torch
from torch import Tensor

from headrace.kernels.checks import element_type, integer_type, require
from headrace.kernels.device import open_device
from headrace.kernels.launch import Kernel, load
from headrace.kernels.rows import vector
from headrace.kernels.stretches import layers

_WARP, _MAX_THREADS, _THREADS_A_SM = 32, 256, 2048
#: Rows that a thread has on their way at a time, where there are many.
SEVERAL = (4, 2)
# Or where as many blocks are left: one begins every 1.25 ns, however small it is.
_BLOCKS_A_SM = 6


def embedding(token_ids: Tensor, weight: Tensor, *, first_id: int = 0, out: Tensor | None = None) -> Tensor:
    """Look tokens up; a token that the table does not hold gives zeros.

    Args:
        token_ids: int32 or int64 ``[num_tokens]``, contiguous.
        weight: fp32, fp16 or bf16 ``[num_ids, hidden]``, contiguous.
        first_id: token of the table's first row: a shard's.
        out: where to. Default: a new tensor.

    Returns:
        ``[num_tokens, hidden]``.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    (num_tokens,) = token_ids.shape
    num_ids, width = weight.shape
    out = weight.new_empty(num_tokens, width) if out is None else out
    require(token_ids, "token_ids", (num_tokens,), token_ids.dtype, alignment=token_ids.element_size())
    require(weight, "weight", weight.shape, weight.dtype)
    require(out, "out", (num_tokens, width), weight.dtype)
    vec = vector(width, weight.element_size())
    num_vecs = width // vec
    threads = min(_MAX_THREADS, -(-num_vecs // _WARP) * _WARP)
    stretches = -(-num_vecs // threads)
    tokens = tokens_a_thread(num_tokens, num_vecs, stretches, open_device(weight.get_device()).num_sms)
    kernel = _kernel(
        weight.device, element_type(weight, "weight"), integer_type(token_ids, "token_ids"), vec, threads, tokens
    )
    grid = (stretches, *layers(-(-num_tokens // tokens)))
    kernel(grid, (threads,), out, token_ids, weight, num_tokens, num_ids, num_vecs, first_id)
    return out


def tokens_a_thread(num_tokens: int, num_vecs: int, stretches: int, num_sms: int) -> int:
    """Choose how many rows a thread takes a vector of: several where that leaves threads enough, or blocks too many.

    Args:
        num_tokens: how many rows there are.
        num_vecs: of a row.
        stretches: blocks that share a row.
        num_sms: of the device.
    """
    threads, blocks = num_tokens * num_vecs, num_tokens * stretches
    for count in SEVERAL:
        if threads >= count * num_sms * _THREADS_A_SM or blocks >= count * num_sms * _BLOCKS_A_SM:
            return count
    return 1


@functools.cache
def _kernel(device: torch.device, element: str, token: str, vec: int, threads: int, tokens: int) -> Kernel:
    return load(
        "embedding",
        "embedding",
        "PPPqqiq",
        device,
        DTYPE=element,
        TOKEN=token,
        VEC=vec,
        THREADS=threads,
        TOKENS=tokens,
    )
