"""An encoder at work: any mixture of items in packed batches."""

from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

import numpy as np
import torch
from torch import Tensor

from headrace.kernels.encoder_table import EncoderBatch
from headrace.workers.encoder.answers import Answers, kinds_of
from headrace.workers.encoder.checks import check_item
from headrace.workers.encoder.items import EncoderItem, Kind, Result
from headrace.workers.encoder.loading import LoadedEncoder

#: Tokens of one packed batch where nothing else is said.
DEFAULT_BATCH_TOKENS: Final = 16_384


class EncoderRunner:
    """Computes items on one loaded encoder; several threads may call it at once.

    Args:
        loaded: the encoder.
        batch_tokens: tokens computed together at most; a longer row is computed alone.

    Attributes:
        kinds: what the model can be asked for.
        labels: names of the classes, in the order of their scores; empty where it does not classify.
        max_tokens: tokens of the longest row, special ones among them.
        text_tokens: tokens to which the folder wants texts cut, at most ``max_tokens``.
        width: numbers of a vector.
        mask_id: token that stands for a missing word; None where there is none.
    """

    def __init__(self, loaded: LoadedEncoder, *, batch_tokens: int = DEFAULT_BATCH_TOKENS) -> None:
        self._loaded = loaded
        self._batch_tokens = batch_tokens
        config, sentences = loaded.encoder.model.config, loaded.sentences
        self._config = config
        self.kinds: frozenset[Kind] = kinds_of(loaded)
        self.labels = config.labels if "classify" in self.kinds else ()
        self.max_tokens = config.max_tokens
        self.text_tokens = min(sentences.max_tokens or config.max_tokens, config.max_tokens)
        self.width = sentences.projections[-1].width if sentences.projections else config.hidden_size
        self.mask_id = loaded.mask_id

    def check(self, item: EncoderItem) -> None:
        """Refuse an item that cannot be computed.

        Raises:
            InvalidRequestError: the model is not made for it, it is empty or too long, or a number is out of range.
        """
        check_item(item, self._config, self.kinds, self.mask_id)

    def run(self, items: Sequence[EncoderItem]) -> list[Result]:
        """Compute items; results come in the order of the items.

        Raises:
            InvalidRequestError: as ``check``, of the first item that it refuses; nothing is computed then.
        """
        for item in items:
            self.check(item)
        return self.compute(items)

    @torch.inference_mode()
    def compute(self, items: Sequence[EncoderItem]) -> list[Result]:
        """``run`` without checks, of items that have been checked one by one."""
        results: dict[int, Result] = {}
        for numbers in self._cut(items):
            batch_items = [items[number] for number in numbers]
            batch = self.pack(batch_items)
            hidden = self._loaded.encoder.model.forward(batch)
            results |= zip(numbers, Answers(self._loaded, batch_items, hidden, batch).all(), strict=True)
        return [results[number] for number in range(len(items))]

    def prepare(self) -> bool:
        """Use an idle moment for what would hold up items to come; whether there was any of that."""
        return False

    def _cut(self, items: Sequence[EncoderItem]) -> Iterator[list[int]]:
        """Cut items into batches, in the order of their lengths: rows of one length lie behind each other."""
        numbers: list[int] = []
        num_tokens = 0
        for number in sorted(range(len(items)), key=lambda number: len(items[number].token_ids)):
            length = len(items[number].token_ids)
            if numbers and num_tokens + length > self._batch_tokens:
                yield numbers
                numbers, num_tokens = [], 0
            numbers.append(number)
            num_tokens += length
        if numbers:
            yield numbers

    def pack(self, items: Sequence[EncoderItem]) -> EncoderBatch:
        """Lay items out as one batch, a row each, in their order."""
        lengths = [len(item.token_ids) for item in items]
        token_ids = _flat([item.token_ids for item in items])
        positions = packed_positions(token_ids, lengths, self._config.first_position, self._config.pad_id)
        type_ids = None
        if self._config.num_types and any(item.type_ids for item in items):
            type_ids = _flat([item.type_ids or (0,) * len(item.token_ids) for item in items])
        return self._loaded.encoder.operations.pack(token_ids, positions, type_ids, lengths)


def _flat(rows: Sequence[Sequence[int]]) -> Tensor:
    """Put numbers behind each other, at a small part of what ``torch.tensor`` takes for a list."""
    arrays = [np.frombuffer(row, np.int32) for row in rows if isinstance(row, array) and row.typecode == "i"]
    if len(arrays) == len(rows):
        return torch.from_numpy(np.concatenate(arrays, dtype=np.int64))
    return torch.from_numpy(np.fromiter(chain.from_iterable(rows), np.int64, sum(map(len, rows))))


def packed_positions(token_ids: Tensor, lengths: Sequence[int], first: int, pad_id: int | None) -> Tensor:
    """Number the tokens of packed rows, as ``row_positions`` does each row's: int64 ``[num_tokens]``.

    Args:
        token_ids: int64 ``[num_tokens]``, on the host.
        lengths: of the rows.
        first: position of a row's first token.
        pad_id: as for ``row_positions``.
    """
    counts = torch.tensor(lengths)
    begins = counts.cumsum(0) - counts
    if pad_id is None:
        return torch.arange(first, first + len(token_ids)) - begins.repeat_interleave(counts)
    counted = token_ids != pad_id
    numbers = torch.cat((counts.new_zeros(1), counted.cumsum(0)))
    return (numbers[1:] - numbers[begins].repeat_interleave(counts)) * counted + pad_id


def row_positions(token_ids: Tensor, first: int, pad_id: int | None) -> Tensor:
    """Number a row's tokens: int64 ``[..., length]``, from ``first`` on.

    Where a family counts from its padding on, tokens of padding inside a row have its own position and are not counted,
    as in fairseq's ``make_positions``.

    Args:
        token_ids: ``[..., length]``.
        first: position of the first one.
        pad_id: token of padding, None for families that count all tokens.
    """
    if pad_id is None:
        return torch.arange(first, first + token_ids.shape[-1], device=token_ids.device).expand(token_ids.shape)
    counted = token_ids != pad_id
    return counted.cumsum(-1) * counted + pad_id
