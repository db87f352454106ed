"""The encoders' table of a runtime that pads: every row is computed as long as its batch's longest, behind a mask.

It stands beside ``encoder_reference``, which packs, so that the same model can be timed both ways; vectors come out
alike. It is for embedding texts on a CPU and for nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from headrace.errors import KernelError
from headrace.kernels.encoder_reference import EncoderReference
from headrace.kernels.encoder_table import EncoderBatch, Pooling
from headrace.kernels.table import Linear


@dataclass(frozen=True, slots=True, eq=False)
class PaddedBatch(EncoderBatch):
    """A batch with padding behind each row; ``lengths`` are those without it.

    Attributes:
        kept: bool ``[num_rows, longest]``, which tokens are no padding.
    """

    kept: Tensor


class PaddedReference(EncoderReference):
    """The table, ``encoder_table.EncoderOperations``; ``num_tokens`` is rows times the longest."""

    def pack(
        self, token_ids: Tensor, positions: Tensor, type_ids: Tensor | None, lengths: Sequence[int]
    ) -> PaddedBatch:
        """Pad by tokens of number 0 at position 0."""
        longest, counts = max(lengths), torch.tensor(lengths)

        def padded(numbers: Tensor) -> Tensor:
            return pad_sequence(list(torch.split_with_sizes(numbers, list(lengths))), batch_first=True).flatten()

        return PaddedBatch(
            token_ids=padded(token_ids),
            positions=padded(positions),
            type_ids=None if type_ids is None else padded(type_ids),
            starts=torch.arange(0, (len(lengths) + 1) * longest, longest, dtype=torch.int32),
            lengths=tuple(lengths),
            kept=torch.arange(longest) < counts[:, None],
        )

    def attention(
        self, qkv: Tensor, linear: Linear, batch: EncoderBatch, num_heads: int, *, out: Tensor | None = None
    ) -> Tensor:
        """Attend in one call; nobody sees padding."""
        kept = _padded(batch).kept
        heads = qkv.view(*kept.shape, 3, num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind()
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=kept[:, None, None, :])
        flat = seen.transpose(1, 2).reshape(qkv.shape[0], -1)
        return flat if out is None else out.copy_(flat)

    def pool(self, x: Tensor, batch: EncoderBatch, pooling: Pooling, *, normalise: bool) -> Tensor:
        """Pool in fp32 what is no padding."""
        kept = _padded(batch).kept
        rows, counts = x.float().view(*kept.shape, -1), kept.sum(dim=1)
        if pooling == "cls":
            pooled = rows[:, 0]
        elif pooling == "last":
            pooled = rows[torch.arange(len(rows)), counts - 1]
        elif pooling == "max":
            pooled = rows.masked_fill(~kept[:, :, None], -torch.inf).amax(dim=1)
        else:
            pooled = (rows * kept[:, :, None]).sum(dim=1) / counts[:, None]
        return functional.normalize(pooled, dim=-1) if normalise else pooled


def _padded(batch: EncoderBatch) -> PaddedBatch:
    if not isinstance(batch, PaddedBatch):
        raise KernelError("the batch was packed by another table")
    return batch
