"""The schema of a request: one model for the SDK, the HTTP gateway and the scheduler.

Field names are OpenAI's. Nothing is coerced and nothing is ignored: an unknown field, a wrong type and a value out of
range are each refused by name. Here are requests for text; those to encoders are in ``headrace.encoder_request``.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from headrace.errors import InvalidRequestError
from headrace.keys import NAME_PATTERN, REQUEST_ID_PATTERN

#: What this program speaks; ``Request.v`` and the field ``v`` in Redis.
CONTRACT_VERSION = 1
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_LIST = 1024
MAX_LOGPROBS = 20
MAX_BAD_WORD_TOKENS = 64


def _is_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not valid unicode at character {error.start}: a lone surrogate") from error
    return text


#: JSON's escapes can spell half a character, which no tokenizer takes and no chunk could carry.
Text = Annotated[str, AfterValidator(_is_unicode)]
#: What the patterns of ids and reply streams mean, in words.
NAMES_ARE = "1 to 128 letters, digits and _.@+=:-, the first a letter or digit"
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
StopString = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_CHARS)]
#: A text, whichever way it is spelt in tokens with or without a space before it; or the very tokens.
BadWord = StopString | Annotated[list[TokenId], Field(min_length=1, max_length=MAX_BAD_WORD_TOKENS)]
Name = Annotated[str, Field(pattern=rf"^{NAME_PATTERN}(:[A-Za-z0-9_.@+=:-]+)?$", max_length=128)]


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    role: Annotated[Text, Field(min_length=1, max_length=64)]
    content: Text


class AnyRequest(BaseModel):
    """The fields that every request has, whatever it asks for.

    ``deadline_ms`` counts from the moment the request entered its stream; ``ttl_ms`` is the life of the result after
    its end. ``cache`` permits an answer from the response cache, and its own to be kept there, where the fleet has one.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    v: Annotated[int, Field(ge=CONTRACT_VERSION, le=CONTRACT_VERSION)] = CONTRACT_VERSION  # Literal[1] takes True
    id: Annotated[str, Field(pattern=REQUEST_ID_PATTERN)] | None = None
    cache: bool = True
    deadline_ms: Annotated[int, Field(ge=1, lt=2**42)] | None = None
    ttl_ms: Annotated[int, Field(ge=1, lt=2**42)] | None = None
    reply_to: Name | None = None

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Self:
        """Check a decoded body.

        Raises:
            InvalidRequestError: ``field`` and the message name the first culprit and its limit.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise _explain(error) from error


class Request(AnyRequest):
    """What a producer asks of a model that writes. Exactly one of ``prompt`` and ``messages`` is given.

    A seed that is not given is drawn at admission, so that a request that moves to another worker goes on with the same
    random numbers. ``n`` results are computed as children, ``<id>/0`` and so on; see docs/design.md.
    """

    task: Literal["generate"] = "generate"
    prompt: Text | list[TokenId] | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_LIST)] | None = None

    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] = 0
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, lt=2**31)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] = Field(default_factory=list)
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_LIST)] = Field(default_factory=list)
    ignore_eos: bool = False
    bad_words: Annotated[list[BadWord], Field(max_length=MAX_LIST)] = Field(default_factory=list)
    logit_bias: Annotated[
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Annotated[float, Field(ge=-100, le=100)]],
        Field(max_length=MAX_LIST),
    ] = Field(default_factory=dict)
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0

    @model_validator(mode="after")
    def _has_one_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give exactly one of prompt and messages")
        if self.prompt is not None and len(self.prompt) == 0:
            raise ValueError("prompt: must not be empty")
        return self

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple, whichever form it was given in."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def _explain(error: ValidationError) -> InvalidRequestError:
    """Say what is wrong with the first culprit; a union's, the way that fitted longest."""
    errors = error.errors(include_url=False, include_context=False)
    of_field = [item for item in errors if item["loc"][:1] == errors[0]["loc"][:1]]
    # A wrong type says only that another form was meant.
    first = max(of_field, key=lambda item: (len(item["loc"]), not item["type"].endswith("_type")))
    location = first["loc"]
    if first["type"] == "extra_forbidden":
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}"[:65] for part in location)[1:]
        return InvalidRequestError(f"{path}: unknown field", field=str(location[0])[:64])
    if not location:
        text = first["msg"].removeprefix("Value error, ")
        return InvalidRequestError(text, field=text.partition(":")[0])
    field = str(location[0])
    where = field
    for part in location[1:]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif part in Message.model_fields:
            where += f".{part}"
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "string_pattern_mismatch" and field in ("id", "reply_to"):
        text = NAMES_ARE
    return InvalidRequestError(f"{where}: {text}", field=field)
