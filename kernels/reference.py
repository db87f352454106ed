"""The table of operations in plain torch: what runs on a CPU, and the oracle of every other table.

Shapes and dtypes are in ``table.Operations``, which this module fulfils; here are only the reasons for how.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from headrace.kernels.table import Linear, Ragged, Segment


def pack_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """Lay a weight out in oneDNN's blocks where torch has oneDNN.

    torch hands fp32 products on a CPU to MKL, which leaves an AVX-512 machine of another maker at a third to a fifth
    of its speed for 8 to 64 tokens; oneDNN's kernels on packed weights do not (measured: 576 x 3072 at 20 tokens,
    two cores, 780 us against 220 us). The operator is the one that torch's own compiler emits for frozen weights.
    """
    if torch._C._has_mkldnn:
        return Linear(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None), bias)
    return Linear(weight.contiguous(), bias)


def linear(x: Tensor, linear: Linear) -> Tensor:
    """Multiply; a token's result has the same bits whatever other tokens are in the batch.

    oneDNN adds up in the same order for every batch of two tokens or more, and in another one for a single token
    (a matrix-vector kernel), which is not faster. So a single token is computed twice.
    """
    if not linear.weight.is_mkldnn:
        return functional.linear(x, linear.weight, linear.bias)
    padded = torch.cat((x, x)) if x.shape[0] == 1 else x
    product: Tensor = torch.ops.mkldnn._linear_pointwise(padded, linear.weight, linear.bias, "none", [], "")
    return product[: x.shape[0]]


def embedding(token_ids: Tensor, weight: Tensor) -> Tensor:
    """Look tokens up."""
    return functional.embedding(token_ids, weight)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None) -> Tensor:
    """Normalise, after adding into the residual stream where there is one."""
    if residual is not None:
        x = residual.add_(x)
    return functional.rms_norm(x, weight.shape, weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, residual: Tensor | None = None) -> Tensor:
    """Normalise, after adding into the residual stream where there is one."""
    if residual is not None:
        x = residual.add_(x)
    return functional.layer_norm(x, weight.shape, weight, bias, eps)


def head_norm(x: Tensor, weight: Tensor, eps: float) -> None:
    """Normalise heads in place."""
    x.copy_(functional.rms_norm(x, weight.shape, weight, eps))


def rotary_table(
    positions: Tensor, inv_freq: Tensor, result: torch.dtype, *, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Compute angles for the step's tokens alone: no table bounds how long a row may become."""
    angles = (positions.to(torch.float32)[:, None] * inv_freq)[:, None, :]
    return angles.cos().mul_(scale).to(result), angles.sin().mul_(scale).to(result)


def rotary(x: Tensor, table: tuple[Tensor, Tensor]) -> None:
    """Rotate in place."""
    cos, sin = table
    first, second = x[..., : 2 * cos.shape[-1]].chunk(2, dim=-1)
    rotated = torch.mul(first, cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).addcmul_(first, sin)
    first.copy_(rotated)


def write_kv(kv: Tensor, new: Tensor, batch: Ragged) -> None:
    """Write keys and values by one operation."""
    kv.index_copy_(1, batch.slots, new.transpose(0, 1))


def segment(views: Sequence[tuple[Tensor, Tensor]], *, first_query: int, num_queries: int, num_context: int) -> Segment:
    """Prepare one row's attention; the mask is the bottom-right causal one, which torch has no name for."""
    mask = None
    if 1 < num_queries < num_context:
        mask = torch.full((num_queries, num_context), -torch.inf, dtype=views[0][0].dtype)
        mask.triu_(num_context - num_queries + 1)
    return Segment(first_query, num_queries, tuple(views), mask)


def band_mask(num_queries: int, num_context: int, window: int) -> Tensor:
    """Say who sees whom through a window: bool ``[num_queries, num_context]``; queries are the context's last tokens.

    Query ``i`` stands at position ``num_context - num_queries + i`` and sees itself and ``window - 1`` tokens before.
    """
    first = num_context - num_queries
    return torch.ones(num_queries, num_context, dtype=torch.bool).tril_(first).triu_(first - window + 1)


def attention(query: Tensor, layer: int, batch: Ragged, *, window: int | None = None) -> Tensor:
    """Attend row by row on views of the memory: no padding and no copy of keys or values."""
    num_tokens, num_kv_heads, group, head_dim = query.shape
    pieces = []
    for row in batch.segments:
        keys, values = row.views[layer]
        mask = row.mask
        if window is not None and window < keys.shape[2]:
            # What lies before the first query's window is not even read.
            seen_tokens = min(keys.shape[2], window + row.num_queries - 1)
            keys, values = keys[:, :, -seen_tokens:], values[:, :, -seen_tokens:]
            mask = band_mask(row.num_queries, seen_tokens, window)
        queries = query[row.first_query : row.first_query + row.num_queries]
        if row.num_queries == 1:
            # One query sees everything, so a group's heads may stand where queries do.
            pieces.append(functional.scaled_dot_product_attention(queries, keys, values))
            continue
        heads = queries.flatten(1, 2).transpose(0, 1).unsqueeze(0)
        seen = functional.scaled_dot_product_attention(
            heads, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        pieces.append(seen[0].transpose(0, 1).reshape(row.num_queries, num_kv_heads, group, head_dim))
    return torch.cat(pieces).view(num_tokens, num_kv_heads * group * head_dim)


def silu_mul(gate_up: Tensor) -> Tensor:
    """Gate."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


def gelu(x: Tensor, approximate: Literal["none", "tanh"]) -> Tensor:
    """Apply; torch has no operation in place."""
    return functional.gelu(x, approximate=approximate)


def add(x: Tensor, y: Tensor) -> None:
    """Add in place."""
    x.add_(y)


def select(x: Tensor, indices: Tensor) -> Tensor:
    """Pick rows."""
    return x.index_select(0, indices)
