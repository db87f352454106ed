"""Calls of encoders as both clients make them: texts to requests, and the requests' answers to one. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from headrace.encoder_request import Task
from headrace.encoder_result import Answer, Classification, Embeddings, Filling, Ranked, Ranking
from headrace.errors import DecodeError, InvalidRequestError

#: Texts of one request, where a call brings more: enough to share what a request costs the queue, few enough for
#: several workers to share a call.
TEXTS_PER_REQUEST = 64

AnswerT = TypeVar("AnswerT", bound=Answer)
#: A text, or its tokens.
TextOrIds = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class EncoderCall:
    """One call: fields that all of its requests share, and the texts that are divided among them.

    Attributes:
        task: what is asked.
        divided: field -> its texts, all equally many; None where there is one text, that is sent as it is.
        shared: all other fields.
    """

    task: Task
    divided: dict[str, list[Any]] | None
    shared: dict[str, Any]

    @classmethod
    def of_input(cls, task: Task, given: object, text_pair: object = None, **shared: Any) -> "EncoderCall":
        """A call with ``input``, one text or many.

        Raises:
            InvalidRequestError: there is no text.
        """
        pairs = {} if text_pair is None else {"text_pair": text_pair}
        if _is_one(given):
            return cls(task, None, {"input": given if isinstance(given, str) else _ids(given), **pairs, **shared})
        texts = [_ids(text) if _is_many(text) else text for text in given]  # type: ignore[attr-defined]
        if text_pair is None:
            return cls(task, {"input": texts}, shared)
        pair = [text_pair] if isinstance(text_pair, str) else _listed("text_pair", text_pair)
        if len(pair) != len(texts):
            raise InvalidRequestError(f"text_pair: {len(pair)} texts, input has {len(texts)}", field="text_pair")
        return cls(task, {"input": texts, "text_pair": pair}, shared)

    @classmethod
    def of_documents(cls, query: object, documents: object, top_n: object) -> "EncoderCall":
        """A call that ranks.

        Raises:
            InvalidRequestError: the documents are no list; one text is none, though it could be read as its characters.
        """
        return cls("rerank", {"documents": _listed("documents", documents)}, {"query": query, "top_n": top_n})

    def requests(self, texts_per_request: int) -> list[dict[str, Any]]:
        """The fields of its requests.

        Raises:
            InvalidRequestError: ``texts_per_request`` is no integer, or less than 1.
        """
        if not isinstance(texts_per_request, int) or texts_per_request < 1:
            raise InvalidRequestError("texts_per_request: must be an integer, at least 1", field="texts_per_request")
        if self.divided is None:
            return [{"task": self.task, **self.shared}]
        num_texts = max(1, *(len(texts) for texts in self.divided.values()))
        return [
            {
                "task": self.task,
                **self.shared,
                **{name: texts[begin : begin + texts_per_request] for name, texts in self.divided.items()},
            }
            for begin in range(0, num_texts, texts_per_request)
        ]


def joined(answers: Sequence[Answer], kind: Callable[[Sequence[Any]], AnswerT], of: type[AnswerT]) -> AnswerT:
    """Put the answers of a call's requests together.

    Raises:
        DecodeError: one is not of the kind that was asked for.
    """
    for answer in answers:
        if not isinstance(answer, of):
            raise DecodeError(f"asked for {of.__name__}, answered with {type(answer).__name__}")
    return kind(answers)


def join_embeddings(parts: Sequence[Embeddings]) -> Embeddings:
    """Vectors in the order of the texts."""
    return Embeddings(tuple(vector for part in parts for vector in part.packed))


def join_labels(parts: Sequence[Classification]) -> Classification:
    """Labels in the order of the texts."""
    return Classification(tuple(text for part in parts for text in part.labels))


def join_masks(parts: Sequence[Filling]) -> Filling:
    """Masks in the order of the texts."""
    return Filling(tuple(text for part in parts for text in part.masks))


def join_rankings(parts: Sequence[Ranking], documents_per_request: int, top_n: int) -> Ranking:
    """One ranking of the documents of all; equal scores keep their order."""
    ranked = [
        replace(each, index=each.index + number * documents_per_request)
        for number, part in enumerate(parts)
        for each in part.documents
    ]
    ranked.sort(key=_place)
    return Ranking(tuple(ranked[:top_n] if top_n else ranked))


def _place(each: Ranked) -> tuple[float, int]:
    return -each.score, each.index


def _is_one(given: object) -> bool:
    """Whether this is one text, as a string or as token ids.

    Raises:
        InvalidRequestError: it is neither one nor many.
    """
    if isinstance(given, str):
        return True
    if not _is_many(given) or not len(given):  # type: ignore[arg-type]
        raise InvalidRequestError("input: must be a text, token ids, or several of either; at least one", field="input")
    first = given[0]  # type: ignore[index]
    return not isinstance(first, str) and not hasattr(first, "__len__")


def _is_many(given: object) -> bool:
    """Whether this is a sequence of texts or of token ids, of whatever class; bytes are neither."""
    return not isinstance(given, str | bytes | bytearray | dict) and all(
        hasattr(given, name) for name in ("__getitem__", "__len__")
    )


def _listed(name: str, texts: Any) -> list[Any]:
    if not _is_many(texts):
        raise InvalidRequestError(f"{name}: must be a list of texts", field=name)
    return list(texts)


def _ids(text: Any) -> list[Any]:
    """Token ids as plain integers, whatever sequence they came in; what is none is left to the schema to refuse."""
    return [int(token) if hasattr(token, "__index__") and not isinstance(token, bool) else token for token in text]
