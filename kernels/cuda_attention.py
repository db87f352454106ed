"""Which kernels a step's attention takes on a GPU, and the plans that they share for all layers of the step.

Rows that decode go through ``decode_attention``, chunks of prompts through ``prefill_attention``; before both,
``rotary_kv`` norms, rotates and writes, but for queries of chunks whose heads have no norm and are rotated as a whole:
``prefill_attention`` rotates these. In some steps none of whose rows brings a chunk, one launch does all of it
(``decode_shape.choose_fused_ring``).
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from headrace.kernels.decode_attention import DecodeAttention
from headrace.kernels.decode_shape import DecodeShape, Ring, choose_fused_ring, choose_ring, fused_rings, plain_rings
from headrace.kernels.device import open_device
from headrace.kernels.heads import HeadNorm as HeadWeights
from headrace.kernels.heads import Heads, heads_of
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.layer_views import LayerViews
from headrace.kernels.paged_batch import PagedBatch, Queries, StepSizes
from headrace.kernels.prefill_attention import PrefillAttention
from headrace.kernels.prefill_shape import PrefillShape
from headrace.kernels.rotary import Rotary
from headrace.kernels.rotary_kv import rotary_kv
from headrace.kernels.table import HeadNorm

# More than any that one launch is for.
_MANY_ROWS = 1024


class StepAttention:
    """Attention of one step after the other, on torch's current stream.

    Args:
        device: a GPU, with its index.
        sizes: of steps at most.
        workspace: gives memory for good: uint8, so many bytes, 16-byte aligned.
    """

    def __init__(self, device: torch.device, sizes: StepSizes, workspace: Callable[[int], Tensor]) -> None:
        self._device = device
        self._sizes = sizes
        self._workspace = workspace
        self._decode: dict[tuple[int | None, Heads | None, Ring], DecodeAttention] = {}
        self._rings: dict[int, Ring] = {}  # by number of rows
        self._fused_rings: dict[int, Ring | None] = {}
        self._loaded: set[Heads] = set()
        self._prefill: PrefillAttention | None = None
        self._planned: set[DecodeAttention | PrefillAttention] = set()
        # What a layer has in common with the one before it is not made anew.
        self._last_views: LayerViews | None = None
        self._last_angles: Rotary | None = None
        self._last_chunks_angles: Rotary | None = None
        self._norms: dict[int, tuple[HeadNorm, HeadWeights]] = {}

    def begin(self) -> None:
        """Begin a step: its work is shared out when the first layer asks."""
        self._planned.clear()
        self._last_views = self._last_angles = self._last_chunks_angles = None

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
        """See ``table.Operations``. ``only_last``: of chunks, what tokens but the last one see is not written."""
        pages = batch.pages[layer]
        head_dim = pages.page_shape[2]
        out = qkv.new_empty(qkv.shape[0], num_heads * head_dim) if out is None else out
        angles, weights = self._angles(rotary), self._weights(layer, norm)
        num_decoding = 0 if batch.lengths is None else batch.lengths.shape[0]
        views = self._views(qkv, out, num_heads, head_dim, num_decoding)
        if self._attend_at_once(batch, views, pages, angles, weights, window):
            return out
        is_later = self._rotates_later(angles, weights, head_dim)
        self._rotate(batch, views, pages, angles, weights, num_decoding if is_later else None)
        if batch.lengths is not None:
            self._attend_rows(batch.lengths, views, pages, window)
        if batch.queries is not None:
            self._attend_chunks(
                *(batch.queries, views.chunks_seen, views.chunks_query, pages, window, only_last),
                self._angles_behind(num_decoding) if is_later else None,
            )
        return out

    def _attend_at_once(
        self,
        batch: PagedBatch,
        views: LayerViews,
        pages: KVPages,
        angles: Rotary | None,
        weights: HeadWeights | None,
        window: int | None,
    ) -> bool:
        """Do all of it in one launch, if this is a step for it; says whether it was."""
        qkv, num_heads = views.qkv, views.num_heads
        heads = heads_of(pages.page_shape[2], angles, weights is not None, qkv.element_size())
        self._load(qkv, num_heads, pages, heads)
        ring = self._fused_ring(qkv, num_heads, pages, window) if batch.queries is None else None
        if batch.lengths is None or ring is None:
            return False
        decode = self._decode_attention(qkv, num_heads, pages, window, ring, heads)
        settled = self._plan_decode(decode, batch.lengths)
        decode.run_fused(views.seen, qkv, pages, batch.lengths, rotary=angles, norm=weights, old_is_settled=settled)
        return True

    def _rotates_later(self, angles: Rotary | None, weights: HeadWeights | None, head_dim: int) -> bool:
        """Whether queries of chunks, where nothing else is done to them, are rotated when attention reads them."""
        return angles is not None and weights is None and angles.turns_halves(head_dim)

    def _attend_rows(self, lengths: Tensor, views: LayerViews, pages: KVPages, window: int | None) -> None:
        """Attend for the rows that decode."""
        ring = self._ring(views.qkv, views.num_heads, pages, window, views.num_decoding)
        decode = self._decode_attention(views.qkv, views.num_heads, pages, window, ring)
        settled = self._plan_decode(decode, lengths)
        decode.run(views.decoding_seen, views.decoding_query, pages, lengths, old_is_settled=settled)

    def _rotate(
        self,
        batch: PagedBatch,
        views: LayerViews,
        pages: KVPages,
        angles: Rotary | None,
        weights: HeadWeights | None,
        num_query_tokens: int | None,
    ) -> None:
        """Norm and rotate queries where they lie, of the first tokens at least; write keys and values."""
        rotary_kv(
            views.qkv,
            batch.positions,
            pages,
            num_heads=views.num_heads,
            rotary=angles,
            norm=weights,
            rows=batch.rows,
            out=views.query,
            num_query_tokens=num_query_tokens,
        )

    def _views(self, qkv: Tensor, out: Tensor, num_heads: int, head_dim: int, num_decoding: int) -> LayerViews:
        views = self._last_views
        if views is None or not views.are_of(qkv, out, num_heads, num_decoding):
            views = self._last_views = LayerViews.of(qkv, out, num_heads, head_dim, num_decoding)
        return views

    def _angles(self, rotary: tuple[Tensor, Tensor] | None) -> Rotary | None:
        """The step's angles, the same for all layers, as kernels take them."""
        if rotary is None:
            return None
        angles = self._last_angles
        if angles is None or angles.cosines is not rotary[0] or angles.sines is not rotary[1]:
            self._last_chunks_angles = None
            angles = self._last_angles = Rotary(*rotary)
        return angles

    def _angles_behind(self, num_tokens: int) -> Rotary | None:
        """The step's angles of the tokens behind the first ones."""
        if self._last_chunks_angles is None and self._last_angles is not None:
            self._last_chunks_angles = self._last_angles.behind(num_tokens)
        return self._last_chunks_angles

    def _weights(self, layer: int, norm: HeadNorm | None) -> HeadWeights | None:
        """A layer's weights, as kernels take them."""
        if norm is None:
            return None
        found = self._norms.get(layer)
        if found is None or found[0] is not norm:
            found = self._norms[layer] = norm, HeadWeights(norm.query, norm.key, norm.eps)
        return found[1]

    def _plan_decode(self, decode: DecodeAttention, lengths: Tensor) -> bool:
        """Plan once a step; says whether the plan was made before this layer.

        Then nothing that attention reads early is still under way: a later layer's begins at the earliest when the
        one before it has waited for all that was launched before that one, the plan among it.
        """
        if decode in self._planned:
            return True
        decode.plan(lengths)
        self._planned.add(decode)
        return False

    def _attend_chunks(
        self,
        queries: Queries,
        out: Tensor,
        query: Tensor,
        pages: KVPages,
        window: int | None,
        only_last: bool,
        rotary: Rotary | None = None,
    ) -> None:
        if self._prefill is None:
            num_kv_heads, page_size, head_dim = pages.keys.shape[1:]
            group, sizes = query.shape[1] // num_kv_heads, self._sizes
            shape = PrefillShape(
                num_kv_heads, group, head_dim, query.dtype, sizes.max_rows, sizes.max_tokens, page_size
            )
            workspace = self._workspace(PrefillAttention.workspace_bytes(shape, self._device))
            self._prefill = PrefillAttention(shape, self._device, workspace, rotates=rotary is not None)
        if only_last or self._prefill not in self._planned:
            self._prefill.plan(
                *(queries.starts, queries.lengths, queries.num_tokens),
                most_chunks=queries.num_chunks,
                only_last=only_last,
            )
            self._planned.add(self._prefill)
        self._prefill.run(out, query, pages, window=window, rotary=rotary)
        if only_last:
            self._planned.remove(self._prefill)  # no plan for another layer

    def _load(self, qkv: Tensor, num_heads: int, pages: KVPages, heads: Heads) -> None:
        """Compile at an engine's first steps, few rows as they have, what steps of other numbers of rows will take."""
        if heads in self._loaded:
            return
        device = open_device(self._device.index)
        shape = replace(self._decode_shape(qkv, num_heads, pages, None), max_rows=_MANY_ROWS)
        for ring in fused_rings(shape, device.shared_bytes, device.num_sms):
            DecodeAttention.load(shape, self._device, ring, heads)
        for ring in plain_rings(shape, device.shared_bytes, device.num_sms):
            DecodeAttention.load(shape, self._device, ring)
        self._loaded.add(heads)

    def _ring(self, qkv: Tensor, num_heads: int, pages: KVPages, window: int | None, num_rows: int) -> Ring:
        if num_rows not in self._rings:
            device = open_device(self._device.index)
            shape = self._decode_shape(qkv, num_heads, pages, window)
            self._rings[num_rows] = choose_ring(shape, num_rows, device.shared_bytes, device.num_sms)
        return self._rings[num_rows]

    def _fused_ring(self, qkv: Tensor, num_heads: int, pages: KVPages, window: int | None) -> Ring | None:
        num_rows = qkv.shape[0]
        if num_rows not in self._fused_rings:
            device = open_device(self._device.index)
            shape = self._decode_shape(qkv, num_heads, pages, window)
            self._fused_rings[num_rows] = choose_fused_ring(shape, num_rows, device.shared_bytes, device.num_sms)
        return self._fused_rings[num_rows]

    def _decode_attention(
        self,
        qkv: Tensor,
        num_heads: int,
        pages: KVPages,
        window: int | None,
        ring: Ring,
        heads: Heads | None = None,
    ) -> DecodeAttention:
        if (window, heads, ring) not in self._decode:
            shape = self._decode_shape(qkv, num_heads, pages, window)
            workspace = self._workspace(DecodeAttention.workspace_bytes(shape, self._device, ring, heads))
            self._decode[window, heads, ring] = DecodeAttention(shape, self._device, workspace, ring, heads)
        return self._decode[window, heads, ring]

    def _decode_shape(self, qkv: Tensor, num_heads: int, pages: KVPages, window: int | None) -> DecodeShape:
        num_kv_heads, page_size, head_dim = pages.keys.shape[1:]
        group, sizes = num_heads // num_kv_heads, self._sizes
        return DecodeShape(num_kv_heads, group, head_dim, qkv.dtype, sizes.max_rows, sizes.max_pages, page_size, window)
