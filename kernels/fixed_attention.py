"""A step's attention in an order of sums that nothing but a token's own row decides.

``decode_attention`` cuts a row's keys by how many rows there are; ``prefill_attention`` never does. Here rows that
decode are chunks of one token for it: what a token sees is summed in the same order whether it was drawn or prompted.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from headrace.kernels.cuda_attention import StepAttention
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.layer_views import LayerViews
from headrace.kernels.paged_batch import StepSizes
from headrace.kernels.prefill_attention import PrefillAttention
from headrace.kernels.prefill_shape import PrefillShape


class FixedAttention(StepAttention):
    """``StepAttention`` in a fixed order; arguments are its."""

    def __init__(self, device: torch.device, sizes: StepSizes, workspace: Callable[[int], Tensor]) -> None:
        super().__init__(device, sizes, workspace)
        self._single: PrefillAttention | None = None
        # A row that decodes brings one query, each behind the one before it.
        self._starts = torch.arange(sizes.max_rows + 1, dtype=torch.int32, device=device)

    def _attend_at_once(self, *_: object) -> bool:
        """Never: one launch for all of it sums as ``decode_attention`` does."""
        return False

    def _rotates_later(self, *_: object) -> bool:
        """Never: one kernel rotates all queries, those that were drawn and those that were prompted."""
        return False

    def _attend_rows(self, lengths: Tensor, views: LayerViews, pages: KVPages, window: int | None) -> None:
        """Attend as for chunks of one token."""
        attention = self._single_attention(views.query, pages)
        if attention not in self._planned:
            attention.plan(self._starts[: views.num_decoding + 1], lengths, views.num_decoding)
            self._planned.add(attention)
        attention.run(views.decoding_seen, views.decoding_query, pages, window=window)

    def _single_attention(self, query: Tensor, pages: KVPages) -> PrefillAttention:
        if self._single is None:
            num_kv_heads, page_size, head_dim = pages.keys.shape[1:]
            max_rows, group = self._sizes.max_rows, query.shape[1] // num_kv_heads
            shape = PrefillShape(num_kv_heads, group, head_dim, query.dtype, max_rows, max_rows, page_size)
            workspace = self._workspace(PrefillAttention.workspace_bytes(shape, self._device))
            self._single = PrefillAttention(shape, self._device, workspace)
        return self._single
