"""What an encoder cannot compute, said before it tries."""

from array import array
from collections.abc import Sequence

import numpy as np

from headrace.errors import InvalidRequestError
from headrace.workers.encoder.config import EncoderConfig
from headrace.workers.encoder.items import EncoderItem, Kind


def check_item(item: EncoderItem, config: EncoderConfig, kinds: frozenset[Kind], mask_id: int | None) -> None:
    """Refuse an item that cannot be computed.

    Args:
        item: what is asked.
        config: the model's.
        kinds: what it can be asked for.
        mask_id: its mask's token, None where it has none.

    Raises:
        InvalidRequestError: the model is not made for it, it is empty or too long, or a number is out of range.
    """
    if item.kind not in kinds:
        raise InvalidRequestError(f"this model cannot {item.kind}; it can {', '.join(sorted(kinds))}", field=item.kind)
    num_tokens = len(item.token_ids)
    if not 1 <= num_tokens <= config.max_tokens:
        raise InvalidRequestError(f"has {num_tokens} tokens, 1 to {config.max_tokens} are allowed", field=item.kind)
    if not _within(item.token_ids, config.vocab_size):
        raise InvalidRequestError(f"token ids must be 0 to {config.vocab_size - 1}", field=item.kind)
    if item.type_ids:
        # Where a model knows no types, those of any tokenizer are passed over.
        num_types = config.num_types or 2
        if len(item.type_ids) != num_tokens or not _within(item.type_ids, num_types):
            raise InvalidRequestError(f"type ids must be one a token, 0 to {num_types - 1}", field=item.kind)
    if item.kind == "fill":
        _check_fill(item, config, mask_id)


def _check_fill(item: EncoderItem, config: EncoderConfig, mask_id: int | None) -> None:
    if not 1 <= item.top_k <= config.vocab_size:
        raise InvalidRequestError(f"top_k must be 1 to {config.vocab_size}", field="top_k")
    if item.places and not _within(item.places, len(item.token_ids)):
        raise InvalidRequestError("a place is outside the text", field="fill")
    if not item.places and (mask_id is None or mask_id not in item.token_ids):
        raise InvalidRequestError("there is no mask in the text, so that nothing can be filled in", field="fill")


def _within(numbers: Sequence[int], end: int) -> bool:
    if isinstance(numbers, array) and numbers.typecode == "i":
        # What is below 0 is more than any end without a sign: one look instead of two.
        return int(np.frombuffer(numbers, np.uint32).max()) < end
    return min(numbers) >= 0 and max(numbers) < end
