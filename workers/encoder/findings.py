"""From a request's job to items for the runner, and from its results to what the courier is told of the request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from headrace.encoder_job import EncoderJob
from headrace.errors import InvalidRequestError, ModelError
from headrace.workers.encoder.items import Classes, Embedding, EncoderItem, Fills, Relevance, Result

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Findings:
    """Makes what is told of requests to one model.

    Attributes:
        width: numbers of its vectors.
        normalises: its folder wants vectors divided by their length.
    """

    width: int
    normalises: bool

    def check(self, job: EncoderJob) -> None:
        """Refuse what cannot be told of this model.

        Raises:
            InvalidRequestError: more dimensions are asked for than vectors have.
        """
        if job.params.dimensions > self.width:
            raise InvalidRequestError(f"dimensions: at most {self.width}, the model's vectors", field="dimensions")

    def found(self, job: EncoderJob, results: Sequence[Result]) -> bytes:
        """What ``headrace.workers.courier.answering`` makes an answer of: MessagePack, a list with an element a text.

        Args:
            job: that was computed.
            results: of its texts, in order.

        Raises:
            ModelError: an answer holds NaN or an infinite number, which nobody could use, and JSON has no words for.
        """
        each: list[Any]
        if job.task == "rerank" and not job.params.pairs:
            vectors = [result.vector for result in results if isinstance(result, Embedding)]
            each = list(cosines(vectors[0], vectors[1:]))
        else:
            each = [self._of(job, result) for result in results]
        if not np.isfinite(_numbers(job, each)).all():
            raise ModelError(
                "the model answers with numbers that are not finite: its weights are damaged, or too large for its "
                "dtype; try another one (float32, bfloat16)"
            )
        packed: bytes = msgpack.packb(each)
        return packed

    def _of(self, job: EncoderJob, result: Result) -> object:
        match result:
            case Embedding(vector):
                return self._cut(job, vector).numpy().tobytes()
            case Classes(scores):
                return scores
            case Relevance(score):
                return score
            case Fills(fills):
                return [(fill.place, fill.token_ids, fill.scores) for fill in fills]

    def _cut(self, job: EncoderJob, vector: Tensor) -> Tensor:
        """Keep the first dimensions, as a model trained for it (Matryoshka) allows; its length is 1 again if it was."""
        params = job.params
        if not params.dimensions or params.dimensions == self.width:
            return vector
        vector = vector[: params.dimensions]
        is_normal = self.normalises if params.normalize is None else params.normalize
        return functional.normalize(vector, dim=0) if is_normal else vector.contiguous()


def _numbers(job: EncoderJob, each: Sequence[Any]) -> "NDArray[Any]":
    """All numbers of an answer, in one array: that is quicker than text by text."""
    if job.task == "embed":
        return np.frombuffer(b"".join(each), np.float32)
    if job.task == "fill":
        return np.array([score for masks in each for _, _, scores in masks for score in scores])
    return np.array(each)


def items_of(job: EncoderJob) -> list[EncoderItem]:
    """A job's texts as the runner takes them."""
    params = job.params
    kind = "embed" if job.task == "rerank" and not params.pairs else job.task
    return [
        EncoderItem(
            kind,
            ids,
            (0,) * num_first + (1,) * (len(ids) - num_first) if num_first < len(ids) else (),
            pooling=params.pooling,
            normalise=params.normalize,
            top_k=params.top or 1,
        )
        for ids, num_first in zip(job.texts(), job.firsts, strict=True)
    ]


def cosines(query: Tensor, documents: Sequence[Tensor]) -> list[float]:
    """Cosine of the angle between a query's vector and each document's, all ``[width]``; rounding takes none past 1."""
    found = functional.cosine_similarity(query[None], torch.stack(list(documents)), dim=-1)
    scores: list[float] = found.clamp(-1, 1).tolist()
    return scores
