"""The encoders' table in plain torch: what runs on a CPU, and the oracle of every other table.

Shapes and dtypes are in ``encoder_table.EncoderOperations``; here are only the reasons for how.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

from headrace.errors import KernelError
from headrace.kernels.encoder_table import Activation, Embeddings, EncoderBatch, Norm, Pooling
from headrace.kernels.int8_linear import Int8Linear
from headrace.kernels.reference import ReferenceOperations
from headrace.kernels.table import Linear

_CPU = torch.device("cpu")
_SHORTEST_NORM = 1e-12  # that of torch's own ``normalize``


@dataclass(frozen=True, slots=True, eq=False)
class Alike:
    """Rows of one length, which attend together without padding.

    Attributes:
        length: tokens of each row.
        num_rows: how many rows.
        tokens: where their tokens lie in the batch, row by row: a slice where the rows lie behind each other, else
            int64 ``[num_rows * length]``.
    """

    length: int
    num_rows: int
    tokens: slice | Tensor


@dataclass(frozen=True, slots=True, eq=False)
class AlikeBatch(EncoderBatch):
    """A batch whose rows are grouped by length.

    Attributes:
        groups: every row is in one of them.
    """

    groups: tuple[Alike, ...] = ()


class EncoderReference:
    """The table, ``encoder_table.EncoderOperations``; it has no state.

    Args:
        device: where it computes.
    """

    def __init__(self, device: torch.device = _CPU) -> None:
        self._device = device
        self._products = ReferenceOperations()

    def hold(self, weight: Tensor) -> Tensor:
        """Leave it where it is on a CPU, which may be a mapped file."""
        return weight.to(self._device)

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Lay a weight out in oneDNN's blocks on a CPU, see ``ReferenceOperations``."""
        if self._device.type == "cpu":
            return self._products.pack_linear(weight, bias)
        return Linear(weight.to(self._device).contiguous(), None if bias is None else bias.to(self._device))

    def pack(
        self, token_ids: Tensor, positions: Tensor, type_ids: Tensor | None, lengths: Sequence[int]
    ) -> EncoderBatch:
        """Group rows by length: torch attends to equal rows in one call, and a call costs more than a short row."""
        starts = [0, *accumulate(lengths)]
        return AlikeBatch(
            token_ids=token_ids.to(self._device, torch.int64),
            positions=positions.to(self._device, torch.int64),
            type_ids=None if type_ids is None else type_ids.to(self._device, torch.int64),
            starts=torch.tensor(starts, dtype=torch.int32).to(self._device),
            lengths=tuple(lengths),
            groups=tuple(_group(lengths, starts, self._device)),
        )

    def embed(self, batch: EncoderBatch, embeddings: Embeddings, *, out: Tensor | None = None) -> Tensor:
        """Look up one table after the other."""
        x = functional.embedding(batch.token_ids, embeddings.words)
        x.add_(functional.embedding(batch.positions, embeddings.positions))
        if embeddings.types is not None:
            types = embeddings.types[:1] if batch.type_ids is None else embeddings.types[batch.type_ids]
            x.add_(types)
        return self.add_norm(x, None, None, embeddings.norm, out=out)

    def product(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """Add the bias at once: in a product on a CPU it costs nothing."""
        return self.linear(x, linear, out=out)

    def linear(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """Multiply and add."""
        if isinstance(linear, Int8Linear):
            return linear.multiply(x, out=out)
        if linear.writes_out or out is None:
            return self._products.linear(x, linear, out=out)
        return out.copy_(self._products.linear(x, linear))

    def attention(
        self, qkv: Tensor, linear: Linear, batch: EncoderBatch, num_heads: int, *, out: Tensor | None = None
    ) -> Tensor:
        """Attend group by group."""
        width = qkv.shape[1] // 3
        out = qkv.new_empty(qkv.shape[0], width) if out is None else out
        for group in _groups(batch):
            query, key, value = _heads(qkv, group, num_heads)
            seen = functional.scaled_dot_product_attention(query, key, value)
            out[group.tokens] = seen.transpose(1, 2).reshape(-1, width)
        return out

    def attention_weights(self, qkv: Tensor, linear: Linear, batch: EncoderBatch, num_heads: int) -> list[Tensor]:
        """Compute scores and their softmax, row by row."""
        weights = []
        for rows in torch.split_with_sizes(qkv, list(batch.lengths)):
            query, key, _ = _heads(rows, Alike(rows.shape[0], 1, slice(None)), num_heads)
            scores = torch.matmul(query[0], key[0].transpose(1, 2)) * query.shape[-1] ** -0.5
            weights.append(scores.softmax(dim=-1))
        return weights

    def activate(self, x: Tensor, linear: Linear, activation: Activation, *, out: Tensor | None = None) -> Tensor:
        """Apply in place, or where it is told."""
        out = x if out is None else out
        if activation in ("gelu", "gelu_tanh"):
            form = "none" if activation == "gelu" else "tanh"
            applied: Tensor = torch.ops.aten.gelu.out(x, approximate=form, out=out)
            return applied
        return torch.clamp_min(x, 0, out=out) if activation == "relu" else torch.tanh(x, out=out)

    def add_norm(
        self, x: Tensor, linear: Linear | None, residual: Tensor | None, norm: Norm, *, out: Tensor | None = None
    ) -> Tensor:
        """Add in place and normalise; the bias is in ``x`` already."""
        if residual is not None:
            x = x.add_(residual)
        normed = functional.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
        return normed if out is None else out.copy_(normed)

    def pool(self, x: Tensor, batch: EncoderBatch, pooling: Pooling, *, normalise: bool) -> Tensor:
        """Pool in fp32."""
        if pooling in ("cls", "last"):
            ends = batch.starts[:-1] if pooling == "cls" else batch.starts[1:] - 1
            pooled = self.select(x, ends).float()
        else:
            lengths = torch.tensor(batch.lengths, device=x.device)
            pooled = torch.segment_reduce(x.float(), pooling, lengths=lengths, unsafe=True)
        return functional.normalize(pooled, dim=-1, eps=_SHORTEST_NORM) if normalise else pooled

    def select(self, x: Tensor, indices: Tensor) -> Tensor:
        """Pick rows."""
        return torch.index_select(x, 0, indices.to(x.device, torch.int64))


def _group(lengths: Sequence[int], starts: Sequence[int], device: torch.device) -> Iterator[Alike]:
    rows_by_length: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        rows_by_length.setdefault(length, []).append(row)
    for length, rows in rows_by_length.items():
        if rows[-1] - rows[0] == len(rows) - 1:
            yield Alike(length, len(rows), slice(starts[rows[0]], starts[rows[-1] + 1]))
        else:
            firsts = torch.tensor([starts[row] for row in rows])
            yield Alike(length, len(rows), (firsts[:, None] + torch.arange(length)).flatten().to(device))


def _groups(batch: EncoderBatch) -> tuple[Alike, ...]:
    if not isinstance(batch, AlikeBatch):
        raise KernelError("the batch was packed by another table")
    return batch.groups


def _heads(qkv: Tensor, group: Alike, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a group, ``[num_rows, num_heads, length, head_dim]`` each; views if it is a slice."""
    heads = qkv[group.tokens].view(group.num_rows, group.length, 3, num_heads, -1)
    query, key, value = heads.permute(2, 0, 3, 1, 4).unbind()
    return query, key, value
