"""An encoder's first layer's input, words, positions and types summed and normalised: ``cuda/encoder_embedding.cu``."""

import functools

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import element_type, require
from headrace.kernels.device import open_device
from headrace.kernels.encoder_table import Embeddings
from headrace.kernels.launch import Kernel, load
from headrace.kernels.rows import RowPlan, plan_rows, round_rows


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
    plan = plan_rows(width, round_rows(num_tokens), words.element_size(), open_device(words.get_device()).num_sms)
    if plan.vecs == 0:
        raise KernelError(f"embeddings of {width} numbers do not fit the registers of a block")
    kernel = _kernel(words.device, element_type(words, "words"), plan)
    kernel(
        (plan.num_blocks(num_tokens),),
        (plan.threads,),
        *(out, token_ids, positions, type_ids, words, table, types, norm.weight, norm.bias),
        *(num_tokens, words.shape[0], table.shape[0], 0 if types is None else types.shape[0], width, norm.eps),
    )
    return out


@functools.cache
def _kernel(device: torch.device, element: str, plan: RowPlan) -> Kernel:
    return load("encoder_embedding", "encoder_embedding", "PPPPPPPPPqiiiif", device, DTYPE=element, **plan.macros)
