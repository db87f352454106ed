"""Decode attention over pages in plain torch: the oracle of ``decode_attention``, on any device."""

import torch
from torch import Tensor

from headrace.kernels.rotary_kv import KVPages


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
