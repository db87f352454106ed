"""What an engine has found of texts becomes an answer: labels get their names, tokens their text. No I/O."""

from typing import Any

import msgpack

from headrace.encoder_job import EncoderJob
from headrace.encoder_result import Candidate, Classification, Embeddings, Filling, Label, Mask, Ranked, Ranking
from headrace.errors import DecodeError
from headrace.wire import Encoding
from headrace.workers.text.encoder_tokenizer import EncoderTokenizer


class Answering:
    """Makes the results of one encoder.

    What an engine has found (``headrace.workers.encoder.findings``) is a list with an element a text, of ``rerank`` a
    document: the bytes of a vector, the scores of all labels, a score, or the masks with their candidates.
    """

    def __init__(self, tokenizer: EncoderTokenizer) -> None:
        self._tokenizer = tokenizer

    def result(self, job: EncoderJob, found: bytes, encoding: Encoding) -> dict[str, Any]:
        """Make what stands in ``done.result``.

        Args:
            job: that was computed.
            found: of its texts, MessagePack.
            encoding: of the result.

        Raises:
            DecodeError: this cannot be an answer to the job.
        """
        try:
            each = msgpack.unpackb(found, use_list=False)
            match job.task:
                case "embed":
                    return Embeddings(each).fields(encoding, job.params.floats)
                case "classify":
                    return Classification(tuple(self._labels(scores, job.params.top) for scores in each)).fields()
                case "rerank":
                    return Ranking(_ranked(each, job.params.top)).fields()
                case "fill":
                    return Filling(tuple(tuple(self._mask(*mask) for mask in masks) for masks in each)).fields()
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise DecodeError(f"the engine's answer to {job.task} cannot be read: {error}") from error

    def _labels(self, scores: tuple[float, ...], top: int) -> tuple[Label, ...]:
        pairs = zip(self._tokenizer.facts.labels, scores, strict=True)
        labels = sorted((Label(*pair) for pair in pairs), key=lambda each: -each.score)
        return tuple(labels[:top] if top else labels)

    def _mask(self, position: int, ids: tuple[int, ...], scores: tuple[float, ...]) -> Mask:
        pairs = zip(ids, scores, strict=True)
        return Mask(
            position, tuple(Candidate(token_id, self._tokenizer.piece(token_id), score) for token_id, score in pairs)
        )


def _ranked(scores: tuple[float, ...], top: int) -> tuple[Ranked, ...]:
    ranked = sorted((Ranked(index, score) for index, score in enumerate(scores)), key=lambda each: -each.score)
    return tuple(ranked[:top] if top else ranked)
