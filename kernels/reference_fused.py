"""Plain torch for what the kernels fuse: their oracle, and what a CPU computes instead.

Each function takes what the kernel of its name takes, and works on any device. In fp32 it is the truth; in the kernel's
own dtype, rounded after each operation as torch rounds, it is the measure of what error is fair.
"""

import torch
from torch import Tensor
from torch.nn import functional

from headrace.kernels.heads import HeadNorm
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.rotary import Rotary


def stream(x: Tensor, residual: Tensor | None, input_bias: Tensor | None) -> Tensor:
    """Add a bias and the residual stream to ``x [num_rows, width]``."""
    if input_bias is not None:
        x = x + input_bias
    return x if residual is None else residual + x


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None, input_bias: Tensor | None = None
) -> Tensor:
    """Normalise ``x + input_bias + residual``; the residual is left as it is."""
    return functional.rms_norm(stream(x, residual, input_bias), list(weight.shape), weight, eps)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    input_bias: Tensor | None = None,
) -> Tensor:
    """Normalise ``x + input_bias + residual``; the residual is left as it is."""
    return functional.layer_norm(stream(x, residual, input_bias), weight.shape, weight, bias, eps)


def softmax(scores: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
    """Softmax of ``scores * scale + mask``, zeros where a row sees nothing."""
    scores = scores * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    blind = (scores == -torch.inf).all(dim=-1, keepdim=True)
    return scores.softmax(dim=-1).masked_fill(blind, 0)


def swiglu(gate_up: Tensor, *, layout: str = "halves") -> Tensor:
    """``silu(gate) * up``."""
    gate, up = _gate_up(gate_up, layout)
    return functional.silu(gate) * up


def geglu(gate_up: Tensor, *, gelu: str = "tanh", layout: str = "halves") -> Tensor:
    """``gelu(gate) * up``."""
    gate, up = _gate_up(gate_up, layout)
    return bias_gelu(gate, None, gelu=gelu) * up


def bias_gelu(x: Tensor, bias: Tensor | None, *, gelu: str = "erf") -> Tensor:
    """``gelu(x + bias)``."""
    x = x if bias is None else x + bias
    return functional.gelu(x, approximate="tanh" if gelu == "tanh" else "none")


def embedding(token_ids: Tensor, weight: Tensor, *, first_id: int = 0) -> Tensor:
    """Look tokens up; zeros for those that the table does not hold."""
    rows = token_ids.long() - first_id
    known = (rows >= 0) & (rows < weight.shape[0])
    return weight[rows.where(known, 0)].masked_fill(~known[:, None], 0)


def rotary_table(positions: Tensor, inv_freq: Tensor, *, scale: float = 1.0, interleaved: bool = False) -> Rotary:
    """Angles in fp32."""
    angles = positions.to(torch.float32)[:, None] * inv_freq
    return Rotary(angles.cos() * scale, angles.sin() * scale, interleaved)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate the first dimensions of ``x [num_tokens, num_heads, head_dim]``; the others pass."""
    rotary_dim = 2 * rotary.cosines.shape[1]
    turned, passed = x[..., :rotary_dim], x[..., rotary_dim:]
    cosines, sines = (table.to(x.dtype)[:, None, :] for table in (rotary.cosines, rotary.sines))
    if rotary.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned.chunk(2, dim=-1)
    pair = (a * cosines - b * sines, b * cosines + a * sines)
    joined = torch.stack(pair, dim=-1).flatten(-2) if rotary.interleaved else torch.cat(pair, dim=-1)
    return torch.cat((joined, passed), dim=-1)


def rotary_kv(
    qkv: Tensor,
    positions: Tensor,
    pages: KVPages,
    *,
    num_heads: int,
    rotary: Rotary | None = None,
    norm: HeadNorm | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Norm and rotate queries and keys, write keys and values into their pages; returns the queries."""
    _, num_kv_heads, page_size, head_dim = pages.keys.shape
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    query, key, value = heads.tensor_split((num_heads, num_heads + num_kv_heads), dim=1)
    if norm is not None:
        query = functional.rms_norm(query, (head_dim,), norm.query, norm.eps)
        key = functional.rms_norm(key, (head_dim,), norm.key, norm.eps)
    if rotary is not None:
        query, key = rotate(query, rotary), rotate(key, rotary)
    kept = positions >= 0
    owners = torch.arange(qkv.shape[0], device=qkv.device) if rows is None else rows.long()
    page = pages.page_table[owners[kept], positions[kept].long() // page_size].long()
    slot = positions[kept].long() % page_size
    pages.keys[page, :, slot] = key[kept]
    pages.values[page, :, slot] = value[kept]
    return query


def copy_pages(pages: Tensor, moves: Tensor) -> None:
    """Copy ``pages[:, from]`` to ``pages[:, to]``."""
    kept = moves[moves[:, 0] >= 0].long()
    pages[:, kept[:, 1]] = pages[:, kept[:, 0]]


def _gate_up(gate_up: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    if layout == "halves":
        gate, up = gate_up.chunk(2, dim=-1)
        return gate, up
    return gate_up[..., 0::2], gate_up[..., 1::2]
