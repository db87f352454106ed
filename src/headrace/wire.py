"""What stands in the streams: bodies of requests, chunks of results, and their two encodings.

A result is encoded as its request was. JSON is for people and for languages without MessagePack; both carry the same
fields.
"""

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import msgpack

from headrace.errors import DecodeError

Encoding = Literal["json", "mp"]
Reason = Literal["stop", "length", "cancelled", "expired", "error"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request was refused or given up.

    Attributes:
        code: ``invalid`` (see ``field``), ``overloaded``, ``poison``, ``lost`` or ``worker``.
        message: a sentence for a person; for ``invalid`` it names the field and its limit.
        field: the culprit of an invalid request, else "".
    """

    code: str
    message: str
    field: str = ""

    def encode(self, encoding: Encoding) -> bytes:
        """The object that stands in a terminal chunk under ``error``."""
        return _pack({"code": self.code, "message": self.message, "field": self.field}, encoding)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the prompt and of the output."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Done:
    """What the last chunk of a result carries besides its tokens.

    Attributes:
        reason: why it ended; of a request with several results, the worst of theirs.
        usage: of a request with several results, the prompt once and the output of all.
        error: why it failed.
        cumulative_logprob: sum over all tokens, where logprobs were asked for and a worker wrote the end.
        result: what an encoder made of the request's texts (``headrace.encoder_result``), as it stands in the stream.
    """

    reason: Reason
    usage: Usage
    error: Failure | None = None
    cumulative_logprob: float | None = None
    result: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How probable a token was, by the model's own distribution: before penalties, biases, temperature and filters.

    Attributes:
        logprob: natural logarithm of the token's probability, at least -9999.
        top: the most probable tokens and their logarithms, falling; as many as were asked for.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt as it was computed: a chat as its template wrote it."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a result.

    A result may begin with a chunk that holds no part of it, its head (entry ``0-1``): the prompt's echo, or of a
    request with several results the names under which they are.

    Attributes:
        i: index of the first token, from 0.
        o: offset of the text, in Unicode code points from the start of the result.
        ids: token ids.
        text: what they add to the text; never half a character.
        done: on the last chunk only.
        logprobs: a token each, where they were asked for, else empty.
        echo: on a head, where it was asked for.
        children: on a head; the results' ids, in order.
        index: which of several results this is a piece of; set by readers that follow several, never in a stream,
            whose name tells it.
    """

    i: int
    o: int
    ids: tuple[int, ...]
    text: str
    done: Done | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    echo: Echo | None = None
    children: tuple[str, ...] = ()
    index: int | None = None

    @property
    def is_head(self) -> bool:
        """Whether it stands before a result and is no part of it."""
        return self.echo is not None or bool(self.children)

    @property
    def num_tokens_after(self) -> int:
        """Tokens written once this chunk is in; also the position to read on from."""
        return self.i + len(self.ids)

    def encode(self, encoding: Encoding) -> bytes:
        """Serialise for the result stream."""
        fields: dict[str, Any] = {"i": self.i, "o": self.o, "ids": self.ids, "text": self.text}
        if self.index is not None:
            fields["index"] = self.index
        if self.echo is not None:
            fields["echo"] = {"ids": self.echo.ids, "text": self.echo.text}
        if self.children:
            fields["children"] = self.children
        if self.logprobs:
            fields["logprobs"] = [{"logprob": token.logprob, "top": token.top} for token in self.logprobs]
        if self.done is not None:
            fields["done"] = _done_fields(self.done)
        return _pack(fields, encoding)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a chunk in either encoding; which one shows in the first byte.

        Raises:
            DecodeError: the bytes are not a chunk.
        """
        try:
            fields = json.loads(data) if data[:1] == b"{" else msgpack.unpackb(data)
            done, echo = fields.get("done"), fields.get("echo")
            return cls(
                fields["i"],
                fields["o"],
                tuple(fields["ids"]),
                fields["text"],
                None if done is None else _done(done),
                tuple(_token_logprobs(token) for token in fields.get("logprobs", ())),
                None if echo is None else Echo(tuple(echo["ids"]), echo["text"]),
                tuple(fields.get("children", ())),
                fields.get("index"),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, msgpack.UnpackException) as error:
            raise DecodeError(f"not a chunk: {error}") from error


def _done_fields(done: Done) -> dict[str, Any]:
    usage = {"prompt_tokens": done.usage.prompt_tokens, "completion_tokens": done.usage.completion_tokens}
    fields: dict[str, Any] = {"reason": done.reason, "usage": usage}
    if (error := done.error) is not None:
        fields["error"] = {"code": error.code, "message": error.message, "field": error.field}
    if done.cumulative_logprob is not None:
        fields["cumulative_logprob"] = done.cumulative_logprob
    if done.result is not None:
        fields["result"] = done.result
    return fields


def _done(fields: dict[str, Any]) -> Done:
    error = fields.get("error")
    return Done(
        fields["reason"],
        Usage(fields["usage"]["prompt_tokens"], fields["usage"]["completion_tokens"]),
        None if error is None else Failure(error["code"], error["message"], error.get("field", "")),
        fields.get("cumulative_logprob"),
        fields.get("result"),
    )


def _token_logprobs(fields: dict[str, Any]) -> TokenLogprobs:
    return TokenLogprobs(fields["logprob"], tuple((token_id, logprob) for token_id, logprob in fields["top"]))


def _pack(fields: dict[str, Any], encoding: Encoding) -> bytes:
    if encoding == "json":
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), default=_base64).encode()
    packed: bytes = msgpack.packb(fields)
    return packed


def _base64(value: object) -> str:
    """Bytes, of a result that was published in MessagePack, as JSON can hold them."""
    if isinstance(value, bytes):
        return b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} is nothing that stands in a stream")


def encode_body(fields: dict[str, Any], encoding: Encoding) -> bytes:
    """Serialise a request's fields for its stream."""
    return _pack(fields, encoding)


def decode_body(data: bytes, encoding: Encoding) -> dict[str, Any]:
    """Read a request's body, which anybody may have written.

    Raises:
        DecodeError: it is not one JSON object, or not one MessagePack map with string keys and plain values.
    """
    try:
        if encoding == "json":
            fields = _JSON.decode(data.decode())
        else:
            fields = msgpack.unpackb(data, timestamp=0, ext_hook=_refuse_extension, object_pairs_hook=_unique)
    except RecursionError as error:
        raise DecodeError(f"{encoding}: nested too deeply") from error
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        # Python's words on integers of too many digits end in advice for its programmers.
        text = str(error).partition("; use sys.")[0]
        raise DecodeError(f"{encoding}: {text[:200] or type(error).__name__}") from error
    if not isinstance(fields, dict):
        raise DecodeError(f"{encoding}: must be an object, is {type(fields).__name__}")
    return fields


def _unique(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Refuse a key that stands twice: parsers disagree on which one counts.

    And one that holds half a character, which JSON's escapes can spell: no refusal that quotes it could be sent. In a
    value, the request's schema refuses it by the field's name.
    """
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if not isinstance(name, str):
            raise ValueError(f"keys must be strings, not {type(name).__name__}")
        name.encode()
        if name in fields:
            raise ValueError(f"{name[:64]!r} stands twice")
        fields[name] = value
    return fields


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


#: Made once: json.loads would make one for every body.
_JSON = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique)


def _refuse_extension(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code} is not allowed")
