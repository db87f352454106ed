"""How a request ended, as its producer sees it: a result or an exception. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.errors import (
    CancelledError,
    DecodeError,
    ExpiredError,
    FailedError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
)
from headrace.wire import Chunk, Done, Reason, Usage


@dataclass(frozen=True, slots=True)
class Result:
    """A finished request.

    Attributes:
        id: of the request.
        text: all of it.
        ids: all token ids.
        reason: ``stop`` or ``length``.
        usage: tokens of the prompt and of the output.
    """

    id: str
    text: str
    ids: tuple[int, ...]
    reason: Reason
    usage: Usage

    @classmethod
    def of(cls, request_id: str, pieces: Sequence[Chunk]) -> "Result":
        """Put the pieces of one result together.

        Raises:
            DecodeError: the last piece is not an end.
        """
        done = pieces[-1].done if pieces else None
        if done is None:
            raise DecodeError(f"the result of {request_id} has no end")
        text = "".join(piece.text for piece in pieces)
        ids = tuple(token for piece in pieces for token in piece.ids)
        return cls(request_id, text, ids, done.reason, done.usage)


def failure_of(done: Done, request_id: str) -> RequestError | None:
    """The exception that an end stands for; None where the request came to its end."""
    error = done.error
    if done.reason in ("stop", "length"):
        return None
    if done.reason == "cancelled":
        return CancelledError(f"{request_id} was cancelled", request_id=request_id)
    if done.reason == "expired":
        return ExpiredError(f"the deadline of {request_id} has passed", request_id=request_id)
    if error is None:
        return FailedError(f"{request_id} failed, and the fleet does not say why", request_id=request_id)
    if error.code == "invalid":
        return InvalidRequestError(error.message, field=error.field, request_id=request_id)
    if error.code == "overloaded":
        return OverloadedError(error.message, request_id=request_id)
    return FailedError(error.message, code=error.code, request_id=request_id)
