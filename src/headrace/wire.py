"""What stands in the streams: bodies of requests, chunks of results, and their two encodings.

A result is encoded as its request was. JSON is for people and for languages without MessagePack; both carry the same
fields.
"""

import json
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
    """What the last chunk of a result carries besides its tokens."""

    reason: Reason
    usage: Usage
    error: Failure | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a result.

    Attributes:
        i: index of the first token, from 0.
        o: offset of the text, in Unicode code points from the start of the result.
        ids: token ids.
        text: what they add to the text; never half a character.
        done: on the last chunk only.
    """

    i: int
    o: int
    ids: tuple[int, ...]
    text: str
    done: Done | None = None

    @property
    def num_tokens_after(self) -> int:
        """Tokens written once this chunk is in; also the position to read on from."""
        return self.i + len(self.ids)

    def encode(self, encoding: Encoding) -> bytes:
        """Serialise for the result stream."""
        fields: dict[str, Any] = {"i": self.i, "o": self.o, "ids": self.ids, "text": self.text}
        if self.done is not None:
            usage = self.done.usage
            fields["done"] = {
                "reason": self.done.reason,
                "usage": {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens},
            }
            if (error := self.done.error) is not None:
                fields["done"]["error"] = {"code": error.code, "message": error.message, "field": error.field}
        return _pack(fields, encoding)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a chunk in either encoding; which one shows in the first byte.

        Raises:
            DecodeError: the bytes are not a chunk.
        """
        try:
            fields = json.loads(data) if data[:1] == b"{" else msgpack.unpackb(data)
            done = fields.get("done")
            return cls(
                fields["i"],
                fields["o"],
                tuple(fields["ids"]),
                fields["text"],
                None if done is None else _done(done),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, msgpack.UnpackException) as error:
            raise DecodeError(f"not a chunk: {error}") from error


def _done(fields: dict[str, Any]) -> Done:
    error = fields.get("error")
    return Done(
        fields["reason"],
        Usage(fields["usage"]["prompt_tokens"], fields["usage"]["completion_tokens"]),
        None if error is None else Failure(error["code"], error["message"], error.get("field", "")),
    )


def _pack(fields: dict[str, Any], encoding: Encoding) -> bytes:
    if encoding == "json":
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    packed: bytes = msgpack.packb(fields)
    return packed


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
            fields = json.loads(data.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique)
        else:
            fields = msgpack.unpackb(data, timestamp=0, ext_hook=_refuse_extension, object_pairs_hook=_unique)
    except RecursionError as error:
        raise DecodeError(f"{encoding}: nested too deeply") from error
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise DecodeError(f"{encoding}: {str(error)[:200] or type(error).__name__}") from error
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


def _refuse_extension(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code} is not allowed")
