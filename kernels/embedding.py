"""Embedding gather: ``cuda/embedding.cu``."""

import functools

import torch
from torch import Tensor

from headrace.kernels.checks import element_type, integer_type, require
from headrace.kernels.device import open_device
from headrace.kernels.launch import Kernel, load
from headrace.kernels.rows import vector
from headrace.kernels.stretches import Stretches, stretch


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
    shape = stretch(width // vec, num_tokens, open_device(weight.get_device()).num_sms)
    kernel = _kernel(weight.device, element_type(weight, "weight"), integer_type(token_ids, "token_ids"), vec, shape)
    grid, block = (shape.num_stretches, min(num_tokens, 65535)), (shape.threads,)
    kernel(grid, block, out, token_ids, weight, num_tokens, num_ids, width, first_id)
    return out


@functools.cache
def _kernel(device: torch.device, element: str, token: str, vec: int, shape: Stretches) -> Kernel:
    return load(
        "embedding",
        "embedding",
        "PPPqqiq",
        device,
        DTYPE=element,
        TOKEN=token,
        VEC=vec,
        VECS=shape.vecs,
        THREADS=shape.threads,
    )
