"""Attention of packed rows, each token to its own row whole, straight from the product of queries, keys and values.

``cuda/encoder_attention.cu`` computes; ``encoder_reference`` is the oracle. What a block computes is planned on the
host (``plan_items``), which knows all lengths, once a batch for all its layers.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.build import C_TYPES
from headrace.kernels.checks import require
from headrace.kernels.decode_shape import RESERVED_BYTES
from headrace.kernels.device import open_device
from headrace.kernels.launch import Kernel, load
from headrace.kernels.prefill_shape import Block

#: Sizes of a head that products are made of; a head of another one is filled up with zeros in shared memory.
HEAD_DIMS = (32, 64, 80, 96, 128)
#: A head's numbers are a multiple of it.
HEAD_STEP = 8
#: Queries of an item.
QUERIES = 64

# As many blocks on a multiprocessor as its shared memory has room for, by size of a head.
_LEAST_BLOCKS = {32: 6, 64: 5, 80: 4, 96: 3, 128: 2}


def plan_items(lengths: Sequence[int], num_items: int | None = None) -> npt.NDArray[np.int32]:
    """Cut rows into items of ``QUERIES`` queries, the longest rows first, for they take longest.

    Args:
        lengths: tokens of each row; the rows lie behind each other.
        num_items: how many to return: behind those that are needed come empty ones. Default: no empty ones.

    Returns:
        ``[num_items, 4]``: the row's first token, its length, the item's first query, 0; a length of 0 is no item.

    Raises:
        KernelError: more items are needed than ``num_items``.
    """
    tokens = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-tokens, kind="stable")
    counts = -(-tokens[order] // QUERIES)
    total = int(counts.sum())
    if num_items is not None and total > num_items:
        raise KernelError(f"rows of {lengths} tokens take {total} items, not {num_items}")
    items = np.zeros((total if num_items is None else num_items, 4), dtype=np.int32)
    firsts = np.cumsum(counts) - counts
    items[:total, 0] = np.repeat((np.cumsum(tokens) - tokens)[order], counts)
    items[:total, 1] = np.repeat(tokens[order], counts)
    items[:total, 2] = (np.arange(total) - np.repeat(firsts, counts)) * QUERIES
    return items


def most_items(num_rows: int, num_tokens: int) -> int:
    """Items that so many rows, of so many tokens in all, take at most."""
    return min(num_rows, num_tokens) + num_tokens // QUERIES


def encoder_attention(
    qkv: Tensor, bias: Tensor | None, items: Tensor, num_heads: int, *, out: Tensor | None = None
) -> Tensor:
    """Attend, on torch's current stream; scores are scaled by ``head_dim ** -0.5``.

    A token's result has the same bits whatever rows are beside its own.

    Args:
        qkv: fp32, fp16 or bf16 ``[num_tokens, 3 * num_heads * head_dim]``, contiguous: query heads, key heads, value
            heads.
        bias: ``[3 * num_heads * head_dim]``, added to it; None: it is in there, or there is none.
        items: int32 ``[num_items, 4]``, of ``plan_items``.
        num_heads: of queries, of keys and of values; a head has a multiple of 8 numbers, up to 128.
        out: where to. Default: a new tensor.

    Returns:
        ``[num_tokens, num_heads * head_dim]``; tokens of no row are left as they are.

    Raises:
        KernelError: shapes, dtypes, devices or the size of a head do not fit.
    """
    num_tokens, width = qkv.shape[0], qkv.shape[1] // 3
    head_dim = width // num_heads
    filled = next((size for size in HEAD_DIMS if head_dim <= size), None)
    if 3 * num_heads * head_dim != qkv.shape[1] or head_dim % HEAD_STEP or filled is None or qkv.dtype not in C_TYPES:
        raise KernelError(
            f"no attention for {num_heads} heads in {qkv.shape[1]} columns of {qkv.dtype}: a head has a multiple of "
            f"{HEAD_STEP} numbers, up to {HEAD_DIMS[-1]}"
        )
    out = qkv.new_empty(num_tokens, width) if out is None else out
    require(qkv, "qkv", qkv.shape, qkv.dtype)
    require(bias, "bias", (3 * width,), qkv.dtype)
    require(out, "out", (num_tokens, width), qkv.dtype)
    require(items, "items", (items.shape[0], 4), torch.int32)
    device = open_device(qkv.get_device())
    block = choose_block(qkv.dtype, filled, device.shared_bytes, device.arch)
    _kernel(device.index, qkv.dtype, head_dim, filled, block)(
        (items.shape[0] * num_heads,),
        (32 * block.warps,),
        *(out, qkv, bias, items, num_heads, head_dim**-0.5 * math.log2(math.e)),
        shared_bytes=block.shared_bytes(qkv.dtype, filled),
    )
    return out


@functools.cache
def choose_block(dtype: torch.dtype, head_dim: int, shared_bytes: int, arch: str) -> Block:
    """Choose how a block computes an item.

    Args:
        dtype: of queries, keys and values.
        head_dim: one of ``HEAD_DIMS``.
        shared_bytes: the most shared memory that a block may have.
        arch: what is compiled for.

    Raises:
        KernelError: not even the smallest block fits.
    """
    if dtype == torch.float32:
        candidates = [Block(QUERIES, 32), Block(QUERIES, 16)]
    elif arch == "sm_90a":
        candidates = [Block(QUERIES, 64, _LEAST_BLOCKS[head_dim], warpgroups=True)]
    else:
        candidates = [Block(QUERIES, keys, 3 if head_dim <= 64 else 2) for keys in (64, 32)]
    for block in candidates:
        if block.shared_bytes(dtype, head_dim) + RESERVED_BYTES <= shared_bytes:
            return block
    raise KernelError(f"heads of {head_dim} {dtype} do not fit {shared_bytes} bytes of shared memory")


@functools.cache
def _kernel(index: int, dtype: torch.dtype, head_size: int, head_dim: int, block: Block) -> Kernel:
    return load(
        "encoder_attention",
        "encoder_attention",
        "PPPPif",
        torch.device("cuda", index),
        shared_bytes=block.shared_bytes(dtype, head_dim),
        HEAD_SIZE=head_size,
        **block.macros(dtype, head_dim),
    )
