"""QK-norm, rotary embedding and the write of keys and values into pages, in one kernel: ``cuda/rotary_kv.cu``."""

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import element_type, integer_type, require
from headrace.kernels.device import open_device
from headrace.kernels.launch import Kernel, load
from headrace.kernels.rows import divisor, vector

_WARP = 32
_THREADS = 64
# Blocks of a multiprocessor, and heads of a thread on their way: more of one would cost registers of the other.
_BLOCKS, _MOST_TURNS = 16, 2


@dataclass(frozen=True, slots=True)
class KVPages:
    """A layer's memory of keys and values, and who owns which page.

    Attributes:
        keys: ``[num_pages, num_kv_heads, page_size, head_dim]``; strides are free but the last, which is 1, so that
            keys and values may be views of one tensor ``[num_pages, 2, …]``.
        values: the same, with the same strides.
        page_table: int32 ``[num_rows, max_pages]``, contiguous: a row's pages in order.
        page_shape: num_kv_heads, page_size and head_dim.
        strides: of keys and of values.
        alignment: bytes, 16 at most, at whose multiples the keys and the values of each token's heads begin.
    """

    keys: Tensor
    values: Tensor
    page_table: Tensor
    # Asked in every launch, and told once: pages stay where they are.
    page_shape: tuple[int, int, int] = field(init=False)
    strides: tuple[int, ...] = field(init=False)
    alignment: int = field(init=False)

    def __post_init__(self) -> None:
        keys, values = self.keys, self.values
        if keys.dtype != values.dtype or keys.shape != values.shape or keys.dim() != 4:
            raise KernelError(f"pages are {keys.dtype} {tuple(keys.shape)} and {values.dtype} {tuple(values.shape)}")
        if keys.stride() != values.stride() or keys.stride(3) != 1:
            raise KernelError("keys and values have different strides, or heads that are not contiguous")
        require(self.page_table, "page_table", self.page_table.shape, torch.int32, alignment=4)
        num_kv_heads, page_size, head_dim = keys.shape[1:]
        steps = (stride * keys.element_size() for stride in keys.stride()[:3])
        object.__setattr__(self, "page_shape", (num_kv_heads, page_size, head_dim))
        object.__setattr__(self, "strides", keys.stride())
        object.__setattr__(self, "alignment", math.gcd(16, keys.data_ptr(), values.data_ptr(), *steps))


@dataclass(frozen=True, slots=True)
class Rotary:
    """Angles of a step's tokens, from ``rotary_table``, and how heads are rotated.

    Attributes:
        cosines: fp32 ``[num_tokens, rotary_dim / 2]``.
        sines: the same.
        interleaved: whether neighbours rotate against each other, else the first half against the second.
    """

    cosines: Tensor
    sines: Tensor
    interleaved: bool = False

    def __post_init__(self) -> None:
        for name, table in (("cosines", self.cosines), ("sines", self.sines)):
            require(table, name, self.cosines.shape, torch.float32)

    def turns_halves(self, head_dim: int) -> bool:
        """Whether the whole of a head is rotated, its first half against the second."""
        return not self.interleaved and 2 * self.cosines.shape[1] == head_dim

    def behind(self, num_tokens: int) -> "Rotary":
        """Give the angles of the tokens behind the first ones."""
        return Rotary(self.cosines[num_tokens:], self.sines[num_tokens:], self.interleaved) if num_tokens else self


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """RMSNorm of each query and key head, before the rotation.

    Attributes:
        query: ``[head_dim]``.
        key: ``[head_dim]``.
        eps: added to the mean square.
    """

    query: Tensor
    key: Tensor
    eps: float

    def __post_init__(self) -> None:
        for name, weight in (("query", self.query), ("key", self.key)):
            require(weight, name, self.query.shape, self.query.dtype)


@dataclass(frozen=True, slots=True)
class Heads:
    """How a head is normed and rotated, and split over threads: a specialisation, but for the dtype."""

    head_dim: int
    rotary_dim: int
    interleaved: bool
    normed: bool
    vec: int
    lanes: int


def rotary_table(
    positions: Tensor,
    inv_freq: Tensor,
    *,
    scale: float = 1.0,
    interleaved: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
) -> Rotary:
    """Make the step's rotations, once for all layers.

    Args:
        positions: int32 or int64 ``[num_tokens]``.
        inv_freq: fp32 ``[rotary_dim / 2]``, radians a token.
        scale: multiplies cosines and sines (YaRN's attention factor).
        interleaved: kept with them, for ``rotary_kv``.
        out: where cosines and sines go, both fp32 ``[num_tokens, rotary_dim / 2]``. Default: new tensors.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    (num_tokens,) = positions.shape
    half = inv_freq.numel()
    require(positions, "positions", (num_tokens,), positions.dtype, alignment=positions.element_size())
    require(inv_freq, "inv_freq", (half,), torch.float32, alignment=4)
    cosines, sines = out or (inv_freq.new_empty(num_tokens, half), inv_freq.new_empty(num_tokens, half))
    rotary = Rotary(cosines, sines, interleaved)
    if cosines.shape != (num_tokens, half):
        raise KernelError(f"room for angles of {tuple(cosines.shape)}, not of {(num_tokens, half)}")
    count = num_tokens * half
    kernel = _table_kernel(positions.device, integer_type(positions, "positions"))
    kernel((-(-count // _THREADS),), (_THREADS,), cosines, sines, positions, inv_freq, count, half, scale)
    return rotary


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
def _split(head_dim: int, rotary_dim: int, interleaved: bool, normed: bool, element_bytes: int) -> Heads:
    half, tail = rotary_dim // 2, (head_dim - rotary_dim) // 2
    if not 0 <= rotary_dim <= head_dim or rotary_dim % 2 or head_dim % 2:
        raise KernelError(f"{rotary_dim} dimensions of a head of {head_dim} cannot be rotated in pairs")
    vec = min(vector(part, element_bytes) for part in (half, tail) if part)
    lanes = 1 << (-(-head_dim // 2 // vec) - 1).bit_length()
    if lanes > _WARP:
        raise KernelError(f"a head of {head_dim}, {rotary_dim} of it rotated, does not fit a warp")
    return Heads(head_dim, rotary_dim, interleaved, normed, vec, lanes)


def heads_of(head_dim: int, rotary: Rotary | None, normed: bool, element_bytes: int) -> Heads:
    """Say how a head is split over threads.

    Raises:
        KernelError: it cannot be.
    """
    if rotary is None:
        return _split(head_dim, 0, False, normed, element_bytes)
    return _split(head_dim, 2 * rotary.cosines.shape[1], rotary.interleaved, normed, element_bytes)


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


@functools.cache
def _table_kernel(device: torch.device, position: str) -> Kernel:
    # The file's other kernel wants a head: any will do.
    shape = {
        "HEAD_DIM": 2,
        "ROTARY_DIM": 2,
        "INTERLEAVED": 0,
        "NORMED": 0,
        "VEC": 1,
        "LANES": 1,
        "TURNS": 1,
        "BLOCKS": 1,
    }
    return load(
        "rotary_kv", "rotary_table", "PPPPqif", device, DTYPE="float", THREADS=_THREADS, POSITION=position, **shape
    )
