"""From a batch's hidden states to what its items asked for, all items of one kind at a time."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

from headrace.kernels.encoder_table import EncoderBatch, Pooling
from headrace.workers.encoder.items import Classes, Embedding, EncoderItem, Fill, Fills, Kind, Relevance, Result
from headrace.workers.encoder.loading import LoadedEncoder


def kinds_of(loaded: LoadedEncoder) -> frozenset[Kind]:
    """Tell what a model can be asked for: vectors always, the rest by its heads."""
    kinds: set[Kind] = {"embed"}
    heads = loaded.encoder.heads
    if heads.classes is not None:
        kinds.add("classify")
        if len(loaded.encoder.model.config.labels) == 1:
            kinds.add("rerank")
    if heads.fill is not None:
        kinds.add("fill")
    return frozenset(kinds)


class Answers:
    """Answers the items of one batch.

    Args:
        loaded: the encoder.
        items: the batch's, a row each.
        hidden: ``[num_tokens, hidden]``.
        batch: whose hidden states they are.
    """

    def __init__(
        self, loaded: LoadedEncoder, items: Sequence[EncoderItem], hidden: Tensor, batch: EncoderBatch
    ) -> None:
        self._loaded = loaded
        self._items = items
        self._hidden = hidden
        self._batch = batch
        self._ops = loaded.encoder.operations

    def all(self) -> list[Result]:
        """Give every item's result, in the order of the items."""
        results: dict[int, Result] = {}
        for kind in {item.kind for item in self._items}:
            numbers = [number for number, item in enumerate(self._items) if item.kind == kind]
            results |= zip(numbers, self._of(kind, numbers), strict=True)
        return [results[number] for number in range(len(self._items))]

    def _of(self, kind: Kind, numbers: Sequence[int]) -> Sequence[Result]:
        match kind:
            case "embed":
                return self._embeddings(numbers)
            case "classify":
                return [Classes(tuple(row)) for row in self._scores(self._logits()[list(numbers)]).tolist()]
            case "rerank":
                logits = self._logits()[list(numbers), 0]
                scores = logits.sigmoid() if self._loaded.encoder.model.config.relevance == "sigmoid" else logits
                return [Relevance(*pair) for pair in zip(scores.tolist(), logits.tolist(), strict=True)]
            case "fill":
                return self._fills(numbers)

    def _embeddings(self, numbers: Sequence[int]) -> list[Result]:
        ways = {number: self._way(self._items[number]) for number in numbers}
        vectors = {way: self._vectors(*way) for way in set(ways.values())}
        return [Embedding(vectors[ways[number]][number]) for number in numbers]

    def _way(self, item: EncoderItem) -> tuple[Pooling, bool]:
        sentences = self._loaded.sentences
        normalise = sentences.normalise if item.normalise is None else item.normalise
        return item.pooling or sentences.pooling, normalise

    def _vectors(self, pooling: Pooling, normalise: bool) -> Tensor:
        """Make every row's vector: fp32 ``[num_rows, width]``, on the host."""
        projections = self._loaded.sentences.projections
        vectors = self._ops.pool(self._hidden, self._batch, pooling, normalise=normalise and not projections)
        for projection in projections:
            vectors = projection.apply(self._ops, vectors, self._loaded.encoder.model.dtype)
        if normalise and projections:
            vectors = functional.normalize(vectors, dim=-1)
        return vectors.cpu()

    def _logits(self) -> Tensor:
        """Compute every row's logits: fp32 ``[num_rows, num_labels]``, on the host."""
        classes = self._loaded.encoder.heads.classes
        assert classes is not None, "the runner refuses what the model has no head for"
        return classes.logits(self._ops, self._hidden, self._batch).float().cpu()

    def _scores(self, logits: Tensor) -> Tensor:
        match self._loaded.encoder.model.config.problem:
            case "single_label_classification":
                return logits.softmax(dim=-1)
            case "multi_label_classification":
                return logits.sigmoid()
            case "regression":
                return logits

    def _fills(self, numbers: Sequence[int]) -> list[Result]:
        head = self._loaded.encoder.heads.fill
        assert head is not None, "the runner refuses what the model has no head for"
        starts = [0, *accumulate(self._batch.lengths)]
        places = {number: self._places(self._items[number]) for number in numbers}
        wanted = torch.tensor([starts[number] + place for number in numbers for place in places[number]])
        probabilities = head.logits(self._ops, self._ops.select(self._hidden, wanted)).float().softmax(dim=-1)
        best = probabilities.topk(max(self._items[number].top_k for number in numbers), dim=-1)
        rows = iter(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return [Fills(tuple(_fill(place, self._items[number].top_k, *next(rows)) for place in places[number]))
                for number in numbers]  # fmt: skip

    def _places(self, item: EncoderItem) -> tuple[int, ...]:
        if item.places:
            return item.places
        return tuple(place for place, token_id in enumerate(item.token_ids) if token_id == self._loaded.mask_id)


def _fill(place: int, top_k: int, token_ids: Sequence[int], scores: Sequence[float]) -> Fill:
    return Fill(place, tuple(token_ids[:top_k]), tuple(scores[:top_k]))
