"""QK-norm, rotary embedding and the write of keys and values into pages, in one kernel: ``cuda/rotary_kv.cu``."""

import functools

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import element_type, integer_type, require
from headrace.kernels.device import open_device
from headrace.kernels.heads import HeadNorm, Heads, heads_of
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.launch import Kernel, load
from headrace.kernels.rotary import Rotary
from headrace.kernels.rows import divisor

_THREADS = 64
# Blocks of a multiprocessor, and heads of a thread on their way: more of one would cost registers of the other.
_BLOCKS, _MOST_TURNS = 16, 2


def rotary_kv(
    qkv: Tensor,
    positions: Tensor,
    pages: KVPages,
    *,
    num_heads: int,
    rotary: Rotary | None = None,
    norm: HeadNorm | None = None,
    rows: Tensor | None = None,
    out: Tensor | None = None,
    num_query_tokens: int | None = None,
) -> Tensor:
    """Norm and rotate queries and keys; write keys and values into their pages.

    Args:
        qkv: fp32, fp16 or bf16 ``[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]``: query heads, key heads,
            value heads; contiguous.
        positions: int32 or int64 ``[num_tokens]``, each token's place in its own row; a negative one marks padding,
            whose key and value are not written.
        pages: where to; every other position's page must be in the table.
        num_heads: query heads.
        rotary: angles; None for models without rotation.
        norm: weights of the heads' norms; None for models without.
        rows: int32 ``[num_tokens]``, each token's row of the page table; None: token i is row i.
        out: queries, ``[num_tokens, num_heads, head_dim]``, a token's heads contiguous; may be that very part of
            ``qkv``. Default: a new tensor.
        num_query_tokens: of the first tokens alone queries are normed, rotated and written to ``out``, whose other
            tokens stay as they are; default: of all.

    Returns:
        ``out``.

    Raises:
        KernelError: shapes, dtypes or devices do not fit, or the head cannot be split over threads.
    """
    num_tokens = qkv.shape[0]
    num_kv_heads, page_size, head_dim = pages.page_shape
    num_slots = num_heads + 2 * num_kv_heads
    out = qkv.new_empty(num_tokens, num_heads, head_dim) if out is None else out
    heads = heads_of(head_dim, rotary, norm is not None, qkv.element_size())
    require(qkv, "qkv", (num_tokens, num_slots * head_dim), qkv.dtype)
    _check_out(out, (num_tokens, num_heads, head_dim), qkv.dtype)
    _check_tokens(num_tokens, positions, rows, pages.page_table, rotary)
    _check_heads(qkv.dtype, pages, norm, heads.vec)
    many = num_tokens >= 4 * open_device(qkv.get_device()).num_sms
    types = element_type(qkv, "qkv"), integer_type(positions, "positions")
    num_query_tokens = num_tokens if num_query_tokens is None else num_query_tokens
    most_slots = num_slots if num_query_tokens else num_slots - num_heads
    kernel, num_parts = _split_heads(qkv.get_device(), *types, heads, most_slots, many)
    kernel(
        (num_tokens, num_parts),
        (_THREADS,),
        out,
        out.stride(0),
        qkv,
        num_slots * head_dim,
        num_heads,
        num_kv_heads,
        num_query_tokens,
        None if rotary is None else rotary.cosines,
        None if rotary is None else rotary.sines,
        None if norm is None else norm.query,
        None if norm is None else norm.key,
        0.0 if norm is None else norm.eps,
        positions,
        rows,
        pages.keys,
        pages.values,
        *pages.strides[:3],
        pages.page_table,
        pages.page_table.shape[1],
        page_size,
        *divisor(page_size),
    )
    return out


@functools.cache
def _split_heads(
    index: int, element: str, position: str, heads: Heads, num_slots: int, many: bool
) -> tuple[Kernel, int]:
    """The kernel, and into how many blocks a token's heads are cut.

    Few tokens: a head a group, so that they fill the device; many: a block a token, which loads its angles once.
    """
    num_turns = -(-num_slots // (_THREADS // heads.lanes))
    num_parts, turns = (1, min(num_turns, _MOST_TURNS)) if many else (num_turns, 1)
    return _kernel(torch.device("cuda", index), element, position, heads, turns), num_parts


def _check_out(out: Tensor, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    step, *within = out.stride()
    if out.shape != shape or step * out.element_size() % 16:
        raise KernelError(f"out is {tuple(out.shape)} {out.stride()}, not {list(shape)}")
    if out.dtype != dtype or within != [shape[2], 1] or out.data_ptr() % 16:
        require(out[:1], "out", out[:1].shape, dtype)


def _check_tokens(
    num_tokens: int, positions: Tensor, rows: Tensor | None, page_table: Tensor, rotary: Rotary | None
) -> None:
    require(positions, "positions", (num_tokens,), positions.dtype, alignment=positions.element_size())
    require(rows, "rows", (num_tokens,), torch.int32, alignment=4)
    if rows is None and page_table.shape[0] < num_tokens:
        raise KernelError(f"the page table has {page_table.shape[0]} rows for {num_tokens} tokens")
    if rotary is not None and rotary.cosines.shape[0] != num_tokens:
        raise KernelError(f"there are angles of {rotary.cosines.shape[0]} tokens, not of {num_tokens}")


def _check_heads(dtype: torch.dtype, pages: KVPages, norm: HeadNorm | None, vec: int) -> None:
    keys, head_dim = pages.keys, pages.page_shape[2]
    if keys.dtype != dtype:
        raise KernelError(f"pages hold {keys.dtype}, not {dtype}")
    if norm is not None and (norm.query.dtype != dtype or norm.query.shape != (head_dim,)):
        raise KernelError(f"heads of {dtype} {head_dim}, norms of {norm.query.dtype} {tuple(norm.query.shape)}")
    if pages.alignment % (vec * keys.element_size()):
        raise KernelError(f"a head's keys or values do not begin at a multiple of {vec * keys.element_size()} bytes")


@functools.cache
def _kernel(device: torch.device, element: str, position: str, heads: Heads, turns: int) -> Kernel:
    return load(
        "rotary_kv",
        "rotary_kv",
        "PqPqiiiPPPPfPPPPqqqPiiIi",
        device,
        DTYPE=element,
        HEAD_DIM=heads.head_dim,
        ROTARY_DIM=heads.rotary_dim,
        INTERLEAVED=int(heads.interleaved),
        NORMED=int(heads.normed),
        VEC=heads.vec,
        LANES=heads.lanes,
        TURNS=turns,
        BLOCKS=_BLOCKS,
        THREADS=_THREADS,
        POSITION=position,
    )
