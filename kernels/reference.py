"""The table of operations in plain torch: what runs on a CPU, and the oracle of every other table.

Shapes and dtypes are in ``table.Operations``, which ``ReferenceOperations`` fulfils; here are only the reasons for how.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from headrace.kernels.joined import JoinedOperations
from headrace.kernels.lookup_attention import LookupAttention
from headrace.kernels.ragged import Ragged, Segment
from headrace.kernels.table import HeadNorm, Linear

# What torch calls for ``scaled_dot_product_attention`` on a CPU; called directly, it also gives the softmax's sums.
_flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

_NOTHING = torch.empty(0, dtype=torch.int64)
_NO_BATCH = Ragged(_NOTHING, _NOTHING, _NOTHING, _NOTHING, (), ())


class ReferenceOperations(JoinedOperations):
    """The table, ``table.Table`` of ragged batches; one step at a time."""

    def __init__(self) -> None:
        self._batch = _NO_BATCH
        self._lookups: dict[tuple[int, int, int | None], LookupAttention] = {}
        self._spare = torch.empty(0)  # what one operation needs beside its result

    @contextmanager
    def step(self, batch: Ragged) -> Iterator[None]:
        """Keep the batch at hand."""
        self._batch = batch
        try:
            yield
        finally:
            self._batch = _NO_BATCH

    def hold(self, weight: Tensor) -> Tensor:
        """Leave it where the file is mapped."""
        return weight

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Lay a weight out in oneDNN's blocks where torch has oneDNN.

        torch hands fp32 products on a CPU to MKL, which leaves an AVX-512 machine of another maker at a third to a
        fifth of its speed for 8 to 64 tokens; oneDNN's kernels on packed weights do not (measured: 576 x 3072 at 20
        tokens, two cores, 780 us against 220 us). The operator is the one that torch's own compiler emits for frozen
        weights.
        """
        if torch._C._has_mkldnn:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
            # oneDNN's operator has no form that writes where it is told.
            return Linear(packed, bias, writes_out=False)
        return Linear(weight.contiguous(), bias)

    def linear(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """Multiply; a token's result has the same bits whatever other tokens are in the batch.

        oneDNN adds up in the same order for every batch of two tokens or more, and in another one for a single token
        (a matrix-vector kernel), which is not faster. So a single token is computed twice.
        """
        if not linear.weight.is_mkldnn:
            if linear.bias is None:
                return torch.mm(x, linear.weight.T, out=out)
            return torch.addmm(linear.bias, x, linear.weight.T, out=out)
        padded = torch.cat((x, x)) if x.shape[0] == 1 else x
        product: Tensor = torch.ops.mkldnn._linear_pointwise(padded, linear.weight, linear.bias, "none", [], "")
        return product[: x.shape[0]]

    def embedding(self, token_ids: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Look tokens up."""
        return torch.index_select(weight, 0, token_ids, out=out)

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Normalise, after adding into the residual stream where there is one."""
        if residual is not None:
            x = residual.add_(x)
        if out is None or x.dtype != torch.float32:
            normed = functional.rms_norm(x, weight.shape, weight, eps)
            return normed if out is None else out.copy_(normed)
        # torch's own has no form that writes where it is told; in fp32 these are its steps.
        mean_square = torch.mul(x, x, out=out).mean(dim=-1, keepdim=True)
        return torch.mul(x, mean_square.add_(eps).rsqrt_(), out=out).mul_(weight)

    def layer_norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        *,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Normalise, after adding into the residual stream where there is one."""
        if residual is not None:
            x = residual.add_(x)
        normed = functional.layer_norm(x, weight.shape, weight, bias, eps)
        return normed if out is None else out.copy_(normed)

    def rotary_table(
        self, positions: Tensor, inv_freq: Tensor, result: torch.dtype, *, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Compute angles for the step's tokens alone: no table bounds how long a row may become."""
        angles = (positions.to(torch.float32)[:, None] * inv_freq)[:, None, :]
        return angles.cos().mul_(scale).to(result), angles.sin().mul_(scale).to(result)

    def rotary_attention(
        self,
        qkv: Tensor,
        layer: int,
        num_heads: int,
        *,
        rotary: tuple[Tensor, Tensor] | None = None,
        norm: HeadNorm | None = None,
        window: int | None = None,
        only_sampled: bool = False,
        seen: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Norm, rotate and write, then attend, where need be for more tokens than are wanted."""
        query = self.rotary_kv(qkv, layer, num_heads, rotary=rotary, norm=norm)
        if not only_sampled:
            return self.attention(query, layer, window=window, out=out)
        sampled = self._batch.sampled
        if not sampled.numel():
            return query.new_empty(0, num_heads * query.shape[2])
        return self.select(self.attention(query, layer, window=window, out=seen), sampled, out=out)

    def rotary_kv(
        self,
        qkv: Tensor,
        layer: int,
        num_heads: int,
        *,
        rotary: tuple[Tensor, Tensor] | None = None,
        norm: HeadNorm | None = None,
    ) -> Tensor:
        """Norm, rotate and write, one after the other; gives the queries, ``[num_tokens, num_heads, head_dim]``."""
        memory = self._batch.layers[layer]
        num_kv_heads, head_dim = memory.shape[2:]
        heads = qkv.view(-1, num_heads + 2 * num_kv_heads, head_dim)
        if norm is not None:
            for part, weight in ((heads[:, :num_heads], norm.query), (heads[:, num_heads:-num_kv_heads], norm.key)):
                part.copy_(functional.rms_norm(part, weight.shape, weight, norm.eps))
        if rotary is not None:
            self._rotate(heads[:, :-num_kv_heads], rotary)
        new = heads[:, num_heads:].view(-1, 2, num_kv_heads, head_dim)
        memory.index_copy_(1, self._batch.slots, new.transpose(0, 1))
        return heads[:, :num_heads]

    def attention(self, query: Tensor, layer: int, *, window: int | None = None, out: Tensor | None = None) -> Tensor:
        """Attend to short rows that decode together, to others one by one: no padding and no copy of keys or values."""
        num_tokens, num_heads, head_dim = query.shape
        memory, contexts = self._batch.layers[layer], self._batch.contexts
        num_kv_heads = memory.shape[2]
        if out is None:
            out = query.new_empty(num_tokens, num_heads * head_dim)
        heads = out.view(query.shape)
        if contexts is not None:
            num_rows = len(contexts.lengths)
            lookup = self._lookup(num_kv_heads, num_heads // num_kv_heads, window)
            lookup.attend(query[:num_rows], memory, contexts, heads[:num_rows])
        if not self._batch.segments:
            return out
        grouped = query.view(num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim)
        outputs = []
        for row in self._batch.segments:
            queries = grouped[row.first_query : row.first_query + row.num_queries]
            alone = row.num_queries == 1 and len(row.pieces) == 1
            if alone and (window is None or row.pieces[0].end <= window):
                # One query sees everything, so a group's heads may stand where queries do.
                outputs.append(functional.scaled_dot_product_attention(queries, *row.pieces[0].views[layer]))
            else:
                outputs.append(_attend_pieces(queries, layer, row, window))
        torch.cat(outputs, out=out[self._batch.segments[0].first_query :].view(-1, *grouped.shape[1:]))
        return out

    def _rotate(self, x: Tensor, table: tuple[Tensor, Tensor]) -> None:
        """Rotate heads in place, ``[num_tokens, num_heads, head_dim]``."""
        cos, sin = table
        first, second = x[..., : 2 * cos.shape[-1]].chunk(2, dim=-1)
        if self._spare.numel() < first.numel() or self._spare.dtype != x.dtype:
            self._spare = torch.empty(first.numel(), dtype=x.dtype)
        rotated = torch.mul(first, cos, out=self._spare[: first.numel()].view(first.shape))
        rotated.addcmul_(second, sin, value=-1)
        second.mul_(cos).addcmul_(first, sin)
        first.copy_(rotated)

    def _lookup(self, num_kv_heads: int, group: int, window: int | None) -> LookupAttention:
        kind = num_kv_heads, group, window
        if kind not in self._lookups:
            self._lookups[kind] = LookupAttention(*kind)
        return self._lookups[kind]

    def silu_mul(self, gate_up: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Gate."""
        gate, up = gate_up.chunk(2, dim=-1)
        gated = functional.silu(gate) if out is None else torch.ops.aten.silu.out(gate, out=out)
        return gated.mul_(up)

    def gelu(self, x: Tensor, approximate: Literal["none", "tanh"], *, out: Tensor | None = None) -> Tensor:
        """Apply; torch has no operation in place."""
        if out is None:
            return functional.gelu(x, approximate=approximate)
        applied: Tensor = torch.ops.aten.gelu.out(x, approximate=approximate, out=out)
        return applied

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add in place."""
        x.add_(y)

    def select(self, x: Tensor, indices: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Pick rows."""
        return torch.index_select(x, 0, indices, out=out)


def _attend_pieces(queries: Tensor, layer: int, row: Segment, window: int | None) -> Tensor:
    """Attend to each piece for itself and weigh the results: ``[num_queries, num_kv_heads, group, head_dim]``.

    The weights follow from the logarithms of the softmax's sums, as in Milakov and Gimelshein, Online normalizer
    calculation for softmax, 2018.
    """
    num_queries, num_kv_heads, group, head_dim = queries.shape
    heads = queries.permute(1, 2, 0, 3).reshape(1, num_kv_heads * group, num_queries, head_dim)
    seen, sums = [], []
    for piece in row.pieces:
        keys, values = piece.views[layer]
        start = max(piece.start, row.pieces[-1].end - num_queries - window + 1) if window else piece.start
        if start >= piece.end:
            continue
        keys, values = keys[:, :, start - piece.start :], values[:, :, start - piece.start :]
        causal = num_queries > 1 and piece is row.pieces[-1]
        mask = None
        if window is not None and row.pieces[-1].end - start > window:
            mask = _band_mask(row.pieces[-1].end, num_queries, start, piece.end, window).to(queries.dtype)
            causal = False
        if causal or mask is not None:
            output, log_sum = _flash_attention(heads, keys, values, is_causal=causal, attn_mask=mask)
        else:
            # Every query sees every token, so a group's heads may stand where queries do.
            alike = heads.reshape(1, num_kv_heads, group * num_queries, head_dim)
            output, log_sum = _flash_attention(alike, keys, values)
        seen.append(output.reshape(heads.shape))
        sums.append(log_sum.reshape(heads.shape[:-1]))
    total: Tensor = seen[0]
    if len(seen) > 1:
        weights = torch.stack(sums).softmax(dim=0).unsqueeze(-1)
        total = torch.stack(seen).mul(weights).sum(dim=0).to(queries.dtype)
    return total[0].transpose(0, 1).reshape(queries.shape)


def _band_mask(end: int, num_queries: int, start: int, stop: int, window: int) -> Tensor:
    """Say who sees whom through a window: fp32 ``[num_queries, stop - start]``, 0 or nearly minus infinity.

    Not quite infinity: a query that sees nothing of one piece must weigh nothing there, and not be undefined.

    Args:
        end: position behind the last query.
        num_queries: queries before it.
        start: position of the first token.
        stop: position behind the last token.
        window: tokens that a query sees at most, itself among them.
    """
    distance = torch.arange(end - num_queries, end)[:, None] - torch.arange(start, stop)
    return torch.where((distance >= 0) & (distance < window), 0.0, -1e30)
