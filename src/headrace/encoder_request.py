"""The schema of requests to encoders: ``embed``, ``classify``, ``rerank`` and ``fill``.

A body says with ``task`` which of them it is; without, it asks for text (``headrace.request``). As there, nothing is
coerced and nothing ignored. How many texts a request may bring is a setting, ``max_request_texts``.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from headrace.errors import InvalidRequestError
from headrace.request import AnyRequest, Request, Text, TokenId

Task = Literal["embed", "classify", "rerank", "fill"]
Pooling = Literal["cls", "mean", "max", "last"]

AnyT = TypeVar("AnyT")


def _is_there(given: AnyT) -> AnyT:
    if isinstance(given, str | list) and not given:
        raise ValueError("is empty")
    return given


def _is_of_one_kind(given: AnyT) -> AnyT:
    """Say of a whole ``input`` what a union could say only of the form that it compared last.

    Raises:
        ValueError: it is neither text nor list, or its texts come in several forms.
    """
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise ValueError("must be a text, its token ids, or a list of either")
    kinds = [_kind(each) for each in given]
    for index, kind in enumerate(kinds):
        if kind is None:
            raise ValueError(f"must be texts or token ids, [{index}] is neither")
        if kind is not kinds[0]:
            raise ValueError(f"texts and token ids cannot be mixed in one request, as [0] and [{index}] are")
    return given


def _kind(each: object) -> type | None:
    if isinstance(each, bool):
        return None
    return next((kind for kind in (str, list, int) if isinstance(each, kind)), None)


SomeText = Annotated[Text, BeforeValidator(_is_there)]
TokenIds = Annotated[list[TokenId], BeforeValidator(_is_there)]
ManyTexts = Annotated[list[SomeText], BeforeValidator(_is_there)]
#: One text or many; a text is a string, or the very tokens, special ones among them.
Input = Annotated[
    SomeText | TokenIds | ManyTexts | Annotated[list[TokenIds], BeforeValidator(_is_there)],
    BeforeValidator(_is_of_one_kind),
]


class EncoderRequest(AnyRequest):
    """The fields that all requests to encoders have.

    ``truncate`` cuts what is longer than the model's limit instead of refusing it.
    """

    task: Task
    truncate: bool = False


class EmbedRequest(EncoderRequest):
    """A vector a text.

    ``pooling`` and ``normalize`` are as the model's folder says where they are not given. ``dimensions`` keeps the
    first numbers of a vector (before it is normalised). ``encoding_format`` is how a vector stands in the result:
    ``float``, a list of numbers, which is the default in JSON; ``base64``, little-endian float32, as bytes in
    MessagePack, which is the default there, and in base64 in JSON.
    """

    task: Literal["embed"]
    input: Input
    pooling: Pooling | None = None
    normalize: bool | None = None
    dimensions: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    encoding_format: Literal["float", "base64"] | None = None


class ClassifyRequest(EncoderRequest):
    """Labels and their scores, a list a text, the highest score first.

    ``text_pair`` is a second text for each, for models that judge pairs. ``top_k`` keeps the best labels, 0 all.
    """

    task: Literal["classify"]
    input: Input
    text_pair: SomeText | ManyTexts | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _pairs_match(self) -> Self:
        if self.text_pair is None:
            return self
        texts = [self.input] if isinstance(self.input, str) else self.input
        if not isinstance(texts[0], str):
            raise ValueError("text_pair: needs an input of texts, not of token ids")
        if isinstance(self.text_pair, str) is not isinstance(self.input, str):
            raise ValueError("text_pair: must be one text where input is one, and a list where input is a list")
        if isinstance(self.text_pair, list) and len(self.text_pair) != len(texts):
            raise ValueError(f"text_pair: {len(self.text_pair)} texts, input has {len(texts)}")
        return self


class RerankRequest(EncoderRequest):
    """Documents in the order in which they answer a query, with scores.

    A model with one label judges the query and each document together; any other compares their vectors (cosine).
    ``top_n`` keeps the best, 0 all.
    """

    task: Literal["rerank"]
    query: SomeText
    documents: ManyTexts
    top_n: Annotated[int, Field(ge=0, lt=2**31)] = 0


class FillRequest(EncoderRequest):
    """Candidates for every mask in a text, the likeliest first; ``top_k`` a mask."""

    task: Literal["fill"]
    input: Input
    top_k: Annotated[int, Field(ge=1, le=1000)] = 5


REQUESTS: Mapping[str, type[AnyRequest]] = MappingProxyType(
    {
        "generate": Request,
        "embed": EmbedRequest,
        "classify": ClassifyRequest,
        "rerank": RerankRequest,
        "fill": FillRequest,
    }
)


def parse_request(fields: dict[str, Any]) -> Request | EncoderRequest:
    """Check a decoded body, whatever it asks for.

    Raises:
        InvalidRequestError: ``field`` and the message name the first culprit and its limit.
    """
    task = fields.get("task", "generate")
    if not isinstance(task, str) or task not in REQUESTS:
        raise InvalidRequestError(f"task: must be one of {', '.join(REQUESTS)}", field="task")
    request = REQUESTS[task].parse(fields)
    assert isinstance(request, Request | EncoderRequest)
    return request
