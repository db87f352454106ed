"""Attention over pages in plain torch: the oracle of ``decode_attention`` and ``prefill_attention``, on any device."""

import torch
from torch import Tensor

from headrace.kernels.kv_pages import KVPages


def decode_attention(
    query: Tensor, pages: KVPages, lengths: Tensor, *, window: int | None = None, scale: float | None = None
) -> Tensor:
    """Let each row's one query token see its row's keys; every operation rounds to the tensors' own dtype.

    Args:
        query: ``[num_rows, num_heads, head_dim]``.
        pages: keys and values, of the same dtype.
        lengths: ``[num_rows]``, keys each row has; 0: padding.
        window: keys that a row sees at its end; None: all.
        scale: of scores; default: ``head_dim ** -0.5``.

    Returns:
        ``[num_rows, num_heads, head_dim]``; zeros for padding rows.
    """
    _, num_kv_heads, page_size, head_dim = pages.keys.shape
    out = torch.zeros_like(query)
    for row, length in enumerate(lengths.tolist()):
        if length == 0:
            continue
        first = 0 if window is None else max(length - window, 0)
        ids = pages.page_table[row, : -(-length // page_size)].long()
        # [num_kv_heads, length - first, head_dim]
        keys, values = (x[ids].transpose(0, 1).flatten(1, 2)[:, first:length] for x in (pages.keys, pages.values))
        queries = query[row].view(num_kv_heads, -1, head_dim) * (head_dim**-0.5 if scale is None else scale)
        out[row] = (torch.softmax(queries @ keys.transpose(1, 2), dim=-1) @ values).flatten(0, 1)
    return out


def prefill_attention(
    query: Tensor,
    pages: KVPages,
    query_starts: Tensor,
    lengths: Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Let each row's query tokens see its keys up to their own; every operation rounds to the tensors' own dtype.

    Args:
        query: ``[num_tokens, num_heads, head_dim]``.
        pages: keys and values, of the same dtype; those of the query tokens are in them.
        query_starts: ``[num_rows + 1]``: where each row's queries begin, and where the last one's end.
        lengths: ``[num_rows]``, keys each row has; 0: padding.
        window: keys that a token sees at most, itself included; None: all before it.
        scale: of scores; default: ``head_dim ** -0.5``.

    Returns:
        ``[num_tokens, num_heads, head_dim]``; zeros for padding.
    """
    _, num_kv_heads, page_size, head_dim = pages.keys.shape
    out, starts = torch.zeros_like(query), query_starts.tolist()
    for row, length in enumerate(lengths.tolist()):
        begin, end = starts[row], starts[row + 1]
        if length == 0 or begin == end:
            continue
        positions = torch.arange(length - (end - begin), length, device=query.device)[:, None]
        first = 0 if window is None else max(int(positions[0]) + 1 - window, 0)
        places = torch.arange(first, length, device=query.device)
        ids = pages.page_table[row].long()[places // page_size]
        # [num_kv_heads, 1, length - first, head_dim]
        keys, values = (x[ids, :, places % page_size].transpose(0, 1)[:, None] for x in (pages.keys, pages.values))
        hidden = places > positions
        if window is not None:
            hidden |= places <= positions - window
        # [num_kv_heads, group, queries, head_dim]
        queries = query[begin:end].reshape(end - begin, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)
        scores = (queries * (head_dim**-0.5 if scale is None else scale)) @ keys.transpose(2, 3)
        weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
        out[begin:end] = (weights @ values).permute(2, 0, 1, 3).flatten(1, 2)
    return out
