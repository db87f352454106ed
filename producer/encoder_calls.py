"""What a client asks of encoders: each call waits for its answer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from headrace.encoder_result import Answer, Classification, Embeddings, Filling, Ranking
from headrace.producer.encoding import (
    TEXTS_PER_REQUEST,
    EncoderCall,
    TextOrIds,
    join_embeddings,
    join_labels,
    join_masks,
    join_rankings,
    joined,
)


class EncoderCalls(ABC):
    """Calls, each of which is one request or, with many texts, several."""

    @abstractmethod
    def _encode(
        self, call: EncoderCall, timeout_s: float | None, texts_per_request: int, options: dict[str, Any]
    ) -> list[Answer]:
        """Have the requests of a call computed; an answer each, in their order."""

    def embed(
        self,
        input: TextOrIds | Sequence[TextOrIds],
        *,
        timeout_s: float | None = None,
        texts_per_request: int = TEXTS_PER_REQUEST,
        **options: Any,
    ) -> Embeddings:
        """Turn texts into vectors.

        Args:
            input: a text or its token ids, or a list of either, of any length; more than ``texts_per_request`` become
                several requests.
            timeout_s: seconds for all of it, default the client's.
            texts_per_request: of one request.
            **options: ``pooling`` (cls, mean, max, last), ``normalize``, ``dimensions``, ``encoding_format``,
                ``truncate``, ``cache``, ``deadline_ms``, …; and ``lane``, ``tenant``, ``request_id``, ``encoding``,
                ``durability`` and ``via`` as in ``submit``. The requests of a call with a ``request_id`` are, where
                there are several, ``<request_id>.0``, ``<request_id>.1`` and so on.

        Raises:
            RequestError: as ``submit`` and ``Handle.stream``, of the first request that fails; all others are
                cancelled. A text is named by its place in ``input``, however that was divided.
            TimeoutError: time is up; what is still in the queue is cancelled.
        """
        call = EncoderCall.of_input("embed", input)
        return joined(self._encode(call, timeout_s, texts_per_request, options), join_embeddings, Embeddings)

    def classify(
        self,
        input: TextOrIds | Sequence[TextOrIds],
        *,
        text_pair: str | Sequence[str] | None = None,
        timeout_s: float | None = None,
        texts_per_request: int = TEXTS_PER_REQUEST,
        **options: Any,
    ) -> Classification:
        """Give texts, or pairs of them, their labels; takes and raises what ``embed`` does, and ``top_k``."""
        call = EncoderCall.of_input("classify", input, text_pair)
        return joined(self._encode(call, timeout_s, texts_per_request, options), join_labels, Classification)

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int = 0,
        timeout_s: float | None = None,
        texts_per_request: int = TEXTS_PER_REQUEST,
        **options: Any,
    ) -> Ranking:
        """Put documents in the order in which they answer a query; takes and raises what ``embed`` does.

        Args:
            query: a text.
            documents: texts.
            top_n: how many to return; 0: all.
            timeout_s: as above.
            texts_per_request: documents of one request.
            **options: as above.
        """
        call = EncoderCall.of_documents(query, documents, top_n)
        answers = self._encode(call, timeout_s, texts_per_request, options)
        return joined(answers, lambda parts: join_rankings(parts, texts_per_request, top_n), Ranking)

    def fill(
        self,
        input: TextOrIds | Sequence[TextOrIds],
        *,
        timeout_s: float | None = None,
        texts_per_request: int = TEXTS_PER_REQUEST,
        **options: Any,
    ) -> Filling:
        """Find what may stand where texts have a mask; takes and raises what ``embed`` does, and ``top_k``."""
        call = EncoderCall.of_input("fill", input)
        return joined(self._encode(call, timeout_s, texts_per_request, options), join_masks, Filling)
