"""A step's attention in an order of sums that nothing but a token's own row decides.

``decode_attention`` cuts a row's keys by how many rows there are; ``prefill_attention`` never does. Here rows that
decode are chunks of one token for it: what a token sees is summed in the same order whether it was drawn or prompted.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from headrace.kernels.cuda_attention import StepAttention
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.paged_batch import PagedBatch, StepSizes
from headrace.kernels.prefill_attention import PrefillAttention
from headrace.kernels.prefill_shape import PrefillShape
from headrace.kernels.table import HeadNorm


class FixedAttention(StepAttention):
    """``StepAttention`` in a fixed order; arguments are its."""

    def __init__(self, device: torch.device, sizes: StepSizes, workspace: Callable[[int], Tensor]) -> None:
        super().__init__(device, sizes, workspace)
        self._single: PrefillAttention | None = None
        # A row that decodes brings one query, each behind the one before it.
        self._starts = torch.arange(sizes.max_rows + 1, dtype=torch.int32, device=device)

    def rotary_attention(
        self,
        batch: PagedBatch,
        qkv: Tensor,
        layer: int,
        num_heads: int,
        *,
        rotary: tuple[Tensor, Tensor] | None,
        norm: HeadNorm | None,
        window: int | None,
        out: Tensor | None,
        only_last: bool = False,
    ) -> Tensor:
        """See ``StepAttention``."""
        pages = batch.pages[layer]
        head_dim = pages.page_shape[2]
        out = qkv.new_empty(qkv.shape[0], num_heads * head_dim) if out is None else out
        num_decoding = 0 if batch.lengths is None else batch.lengths.shape[0]
        views = self._views(qkv, out, num_heads, head_dim, num_decoding)
        self._rotate(batch, qkv, pages, views, self._angles(rotary), self._weights(layer, norm))
        if batch.lengths is not None:
            attention = self._single_attention(views.query, pages)
            if attention not in self._planned:
                attention.plan(self._starts[: num_decoding + 1], batch.lengths, num_decoding)
                self._planned.add(attention)
            attention.run(views.decoding_seen, views.decoding_query, pages, window=window)
        if batch.queries is not None:
            self._attend_chunks(batch.queries, views.chunks_seen, views.chunks_query, pages, window, only_last)
        return out

    def _single_attention(self, query: Tensor, pages: KVPages) -> PrefillAttention:
        if self._single is None:
            num_kv_heads, page_size, head_dim = pages.keys.shape[1:]
            max_rows, group = self._sizes.max_rows, query.shape[1] // num_kv_heads
            shape = PrefillShape(num_kv_heads, group, head_dim, query.dtype, max_rows, max_rows, page_size)
            workspace = self._workspace(PrefillAttention.workspace_bytes(shape, self._device))
            self._single = PrefillAttention(shape, self._device, workspace)
        return self._single
