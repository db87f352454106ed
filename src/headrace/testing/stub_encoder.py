"""An encoder that computes nothing: its results follow from the token ids alone, so that a test can foretell them."""

from collections.abc import Sequence

import torch

from headrace.errors import InvalidRequestError
from headrace.workers.encoder.items import (
    Classes,
    Embedding,
    EncoderItem,
    Fill,
    Fills,
    Kind,
    Relevance,
    Result,
)

WIDTH = 4
MASK_ID = 3


class StubEncoder:
    """Stands for ``headrace.workers.encoder.runner.EncoderRunner``.

    Attributes:
        batches: lengths of the items of every run so far.
        error: raised by the next runs, if it is not None.
    """

    def __init__(self, kinds: Sequence[Kind] = ("embed", "classify", "rerank", "fill")) -> None:
        self.batches: list[list[int]] = []
        self.error: Exception | None = None
        self._kinds = kinds

    def check(self, item: EncoderItem) -> None:
        """Refuse an item of another kind; raises InvalidRequestError."""
        if item.kind not in self._kinds:
            raise InvalidRequestError(f"this model cannot {item.kind}", field=item.kind)

    def compute(self, items: Sequence[EncoderItem]) -> list[Result]:
        """A result each."""
        self.batches.append([len(item.token_ids) for item in items])
        if self.error is not None:
            raise self.error
        return [_result(item) for item in items]


def vector_of(token_ids: Sequence[int]) -> list[float]:
    """The vector of a text: its length, its sum, its first and its last token."""
    return [float(len(token_ids)), float(sum(token_ids)), float(token_ids[0]), float(token_ids[-1])]


def _result(item: EncoderItem) -> Result:
    ids = item.token_ids
    match item.kind:
        case "embed":
            return Embedding(torch.tensor(vector_of(ids)))
        case "classify":
            return Classes((1 / len(ids), 1 - 1 / len(ids)))
        case "rerank":
            return Relevance(1 / (1 + sum(item.type_ids)), 0.0)
        case "fill":
            places = [place for place, token_id in enumerate(ids) if token_id == MASK_ID]
            best = tuple(range(item.top_k))
            return Fills(tuple(Fill(place, best, tuple(1 / (2 + rank) for rank in best)) for place in places))
