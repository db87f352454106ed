"""From rows that are padded to one length to a packed batch, and back."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from headrace.kernels.encoder_table import EncoderBatch
from headrace.workers.encoder.loading import Encoder
from headrace.workers.encoder.runner import row_positions

Rows = Sequence[Tensor | Sequence[int]]
"""Rows of any lengths, without padding."""

_WANTED = "a tensor, or a list of rows of integers"


@dataclass(frozen=True, slots=True, eq=False)
class Padded:
    """A packed batch, and where its tokens stood.

    Attributes:
        batch: the rows that have tokens; None where none has.
        shape: rows and length of what was given.
        kept: int64 ``[num_tokens]``, which tokens are computed, counted through all rows; None where all are.
        rows: int64 ``[num_rows]``, which rows have tokens; None where all have.
    """

    batch: EncoderBatch | None
    shape: tuple[int, int]
    kept: Tensor | None
    rows: Tensor | None

    def spread_tokens(self, x: Tensor) -> Tensor:
        """Put tokens back, ``[num_tokens, width]`` to ``[batch, length, width]``; 0 where there was padding."""
        if self.kept is not None:
            x = x.new_zeros(self.shape[0] * self.shape[1], x.shape[1]).index_copy_(0, self.kept, x)
        return x.view(*self.shape, x.shape[1])

    def spread_rows(self, x: Tensor) -> Tensor:
        """Put rows back, ``[num_rows, width]`` to ``[batch, width]``; 0 where a row was all padding."""
        return x if self.rows is None else x.new_zeros(self.shape[0], x.shape[1]).index_copy_(0, self.rows, x)

    def spread_weights(self, weights: list[Tensor]) -> Tensor:
        """Put attention back, ``[num_heads, length, length]`` a row, to ``[batch, num_heads, length, length]``."""
        num_rows, length = self.shape
        if self.kept is None:
            return torch.stack(weights)
        spread = weights[0].new_zeros(num_rows, weights[0].shape[0], length, length)
        assert self.batch is not None, "a row whose attention is known has tokens"
        first = 0
        for weight, count in zip(weights, self.batch.lengths, strict=True):
            places = self.kept[first : first + count]
            columns = places % length
            spread[int(places[0]) // length][:, columns[:, None], columns] = weight
            first += count
        return spread


def pad_rows(name: str, rows: Rows, device: torch.device) -> tuple[Tensor, Tensor]:
    """Give rows one length, padded by 0 on the right, and a mask that tells them from padding.

    Args:
        name: what to call them in an error.
        rows: integers each.
        device: where to.

    Returns:
        int64 ``[batch, longest]`` and bool of the same shape.

    Raises:
        TypeError: they are no rows, or one holds something else than integers.
        ValueError: there are none, or one is not one-dimensional.
    """
    if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
        hint = "; a tokenizer's result is given as model(**result)" if isinstance(rows, Mapping) else ""
        raise TypeError(f"{name} must be {_WANTED}, not {type(rows).__name__}{hint}")
    given = [_row(name, row) for row in rows]
    if not given or any(row.dim() != 1 for row in given):
        raise ValueError(f"{name} must be {_WANTED}, one at least")
    for row in given:
        _check_integers(name, row)
    lengths = torch.tensor([len(row) for row in given])
    padded = pad_sequence([row.to(device, torch.int64) for row in given], batch_first=True)
    return padded, (torch.arange(padded.shape[1]) < lengths[:, None]).to(device)


def _row(name: str, row: Tensor | Sequence[int]) -> Tensor:
    try:
        made = torch.as_tensor(row)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be {_WANTED}; one is {repr(row)[:40]}") from error
    # Of nothing torch makes floats.
    return made if made.numel() else made.long()


def pack_padded(
    encoder: Encoder,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
) -> Padded:
    """Leave padding out.

    Args:
        encoder: whose table packs.
        input_ids: integers ``[batch, length]``.
        attention_mask: ``[batch, length]``, 0 for padding; None where there is none.
        token_type_ids: integers ``[batch, length]``; None where all are 0.
        position_ids: integers ``[batch, length]`` or ``[1, length]``; None: as transformers counts, which is from the
            first column on, padding or not, except in RoBERTa, which counts whatever is no token of padding.

    Raises:
        TypeError: a tensor of what should be integers is none.
        ValueError: a shape does not fit, or rows are longer than the model has positions for.
    """
    config = encoder.model.config
    for name, given in (("input_ids", input_ids), ("token_type_ids", token_type_ids), ("position_ids", position_ids)):
        if given is not None:
            _check_integers(name, given)
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; it must be [batch, length]")
    shape = (input_ids.shape[0], input_ids.shape[1])
    for name, given in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
        if given is not None and tuple(given.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(given.shape)}; it must be {shape}, as input_ids is")
    if position_ids is None:
        if shape[1] > config.max_tokens:
            raise ValueError(f"rows have {shape[1]} tokens; the model has positions for {config.max_tokens}")
        # From the lengths alone, and with no row cut, they are made on the host, from where they travel with the rest.
        alike = attention_mask is None and config.pad_id is None
        seen = torch.empty(shape, dtype=torch.int64) if alike else input_ids
        position_ids = row_positions(seen, config.first_position, config.pad_id)
    elif tuple(position_ids.shape) not in (shape, (1, shape[1])):
        raise ValueError(f"position_ids has shape {tuple(position_ids.shape)}; it must be {shape}, as input_ids is")
    has_types = bool(config.num_types) and token_type_ids is not None
    streams = [input_ids, position_ids.expand(shape), *([token_type_ids] if has_types else [])]
    lengths, kept, rows = _keep(attention_mask, shape)
    flat = [stream.flatten() if kept is None else stream.flatten()[kept] for stream in streams if stream is not None]
    if not lengths:
        return Padded(None, shape, kept, rows)
    batch = encoder.operations.pack(flat[0], flat[1], flat[2] if has_types else None, lengths)
    return Padded(batch, shape, kept, rows)


def _check_integers(name: str, given: Tensor) -> None:
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, not {given.dtype}")


def _keep(mask: Tensor | None, shape: tuple[int, int]) -> tuple[list[int], Tensor | None, Tensor | None]:
    """Say which tokens count: lengths of rows that have any, places of the tokens, and which rows these are."""
    num_rows, length = shape
    if mask is None:
        return ([length] * num_rows if length else []), None, None
    seen = mask != 0
    counts: list[int] = seen.sum(dim=1).tolist()
    if min(counts, default=0) == length and length:
        return counts, None, None
    lengths = [count for count in counts if count]
    rows = torch.tensor([row for row, count in enumerate(counts) if count], device=mask.device)
    return lengths, seen.flatten().nonzero().flatten(), None if len(lengths) == num_rows else rows
