"""An encoder's first layer's input, words, positions and types summed and normalised: ``cuda/encoder_embedding.cu``."""

import functools

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import element_type, require
from headrace.kernels.device import open_device
from headrace.kernels.encoder_table import Embeddings
from headrace.kernels.launch import Kernel, load
from headrace.kernels.rows import RowPlan, plan_rows, round_rows, vector

_WARP = 32
# What a lane holds of three tables' rows and of their sum fits the registers that leave many warps room.
_LANE_ELEMENTS = 32
# Of a block of warps with a row each: no warp waits for another, and small blocks fill a multiprocessor best.
_THREADS = 128
# Tokens of a multiprocessor from which they are many: a warp each has it at work.
_MANY = 15
# Rows that a warp or block takes one after the other, once this many warps of a multiprocessor have one each: the
# second's ids come while the first is on its way. More rows keep the last blocks waiting.
_TURNS, _WARPS = 2, 32


def encoder_embedding(
    token_ids: Tensor,
    positions: Tensor,
    type_ids: Tensor | None,
    embeddings: Embeddings,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Look up, add and normalise, in fp32 from the first addition to the result.

    Args:
        token_ids: int64 ``[num_tokens]``, contiguous, as the other ids; one that its table does not hold adds nothing.
        positions: int64 ``[num_tokens]``.
        type_ids: int64 ``[num_tokens]``, or None for all 0.
        embeddings: tables ``[num_ids, width]`` and norm, fp32, fp16 or bf16, all alike.
        out: where to. Default: a new tensor.

    Returns:
        ``[num_tokens, width]``.

    Raises:
        KernelError: shapes, dtypes or devices do not fit, or a row is too wide to be held (32,768 of fp16 or bf16).
    """
    words, table, types, norm = embeddings.words, embeddings.positions, embeddings.types, embeddings.norm
    (num_tokens,), width = token_ids.shape, words.shape[1]
    out = words.new_empty(num_tokens, width) if out is None else out
    require(out, "out", (num_tokens, width), words.dtype)
    for name, ids in (("token_ids", token_ids), ("positions", positions), ("type_ids", type_ids)):
        require(ids, name, (num_tokens,), torch.int64, alignment=8)
    for name, each in (("words", words), ("positions", table), ("types", types)):
        require(each, name, (words.shape[0] if each is None else each.shape[0], width), words.dtype)
    for name, part in (("weight", norm.weight), ("bias", norm.bias)):
        require(part, name, (width,), words.dtype)
    num_sms = open_device(words.get_device()).num_sms
    plan = plan_tokens(width, round_rows(num_tokens), words.element_size(), num_sms)
    if plan.vecs == 0:
        raise KernelError(f"embeddings of {width} numbers do not fit the registers of a block")
    kernel = _kernel(words.device, element_type(words, "words"), plan)
    kernel(
        (num_blocks(plan, num_tokens, num_sms),),
        (plan.threads,),
        *(out, token_ids, positions, type_ids, words, table, types, norm.weight, norm.bias),
        *(num_tokens, words.shape[0], table.shape[0], 0 if types is None else types.shape[0], width, norm.eps),
    )
    return out


@functools.cache
def plan_tokens(width: int, num_tokens: int, element_bytes: int, num_sms: int) -> RowPlan:
    """Choose how a token's row is spread over threads: over a warp's alone, if there are many and it is not too wide.

    Args:
        width: elements of a row.
        num_tokens: how many there are, rounded as the caller likes.
        element_bytes: size of an element.
        num_sms: of the device.
    """
    vec = vector(width, element_bytes)
    vecs = -(-width // (vec * _WARP))
    if num_tokens < _MANY * num_sms or width // vec <= _WARP or vecs * vec > _LANE_ELEMENTS:
        return plan_rows(width, num_tokens, element_bytes, num_sms)
    return RowPlan(vec, vecs, 1, True, _THREADS, width == vecs * vec * _WARP)


def num_blocks(plan: RowPlan, num_tokens: int, num_sms: int) -> int:
    """Blocks of a launch: as many as the plan's, until each had better go on to further rows.

    Args:
        plan: how a row is spread.
        num_tokens: how many rows there are.
        num_sms: of the device.
    """
    blocks, at_once = plan.num_blocks(num_tokens), num_sms * _WARPS * _WARP // plan.threads
    return min(blocks, max(at_once, -(-blocks // _TURNS)))


@functools.cache
def _kernel(device: torch.device, element: str, plan: RowPlan) -> Kernel:
    return load("encoder_embedding", "encoder_embedding", "PPPPPPPPPqiiiif", device, DTYPE=element, **plan.macros)
