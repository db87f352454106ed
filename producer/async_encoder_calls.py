"""What a client for asyncio asks of encoders; see ``headrace.producer.encoder_calls``."""

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


class AsyncEncoderCalls(ABC):
    """Calls, each of which is one request or, with many texts, several."""

    @abstractmethod
    async def _encode(
        self, call: EncoderCall, timeout_s: float | None, texts_per_request: int, options: dict[str, Any]
    ) -> list[Answer]:
        """Have the requests of a call computed; an answer each, in their order."""

    async def embed(
        self,
        input: TextOrIds | Sequence[TextOrIds],
        *,
        timeout_s: float | None = None,
        texts_per_request: int = TEXTS_PER_REQUEST,
        **options: Any,
    ) -> Embeddings:
        """See ``EncoderCalls.embed``."""
        call = EncoderCall.of_input("embed", input)
        return joined(await self._encode(call, timeout_s, texts_per_request, options), join_embeddings, Embeddings)

    async def classify(
        self,
        input: TextOrIds | Sequence[TextOrIds],
        *,
        text_pair: str | Sequence[str] | None = None,
        timeout_s: float | None = None,
        texts_per_request: int = TEXTS_PER_REQUEST,
        **options: Any,
    ) -> Classification:
        """See ``EncoderCalls.classify``."""
        call = EncoderCall.of_input("classify", input, text_pair)
        return joined(await self._encode(call, timeout_s, texts_per_request, options), join_labels, Classification)

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int = 0,
        timeout_s: float | None = None,
        texts_per_request: int = TEXTS_PER_REQUEST,
        **options: Any,
    ) -> Ranking:
        """See ``EncoderCalls.rerank``."""
        call = EncoderCall.of_documents(query, documents, top_n)
        answers = await self._encode(call, timeout_s, texts_per_request, options)
        return joined(answers, lambda parts: join_rankings(parts, texts_per_request, top_n), Ranking)

    async def fill(
        self,
        input: TextOrIds | Sequence[TextOrIds],
        *,
        timeout_s: float | None = None,
        texts_per_request: int = TEXTS_PER_REQUEST,
        **options: Any,
    ) -> Filling:
        """See ``EncoderCalls.fill``."""
        call = EncoderCall.of_input("fill", input)
        return joined(await self._encode(call, timeout_s, texts_per_request, options), join_masks, Filling)
