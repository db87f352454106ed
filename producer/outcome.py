"""How a request ended, as its producer sees it: a result or an exception. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.encoder_result import Answer, read_answer
from headrace.errors import (
    CancelledError,
    DecodeError,
    ExpiredError,
    FailedError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
)
from headrace.wire import Chunk, Done, Echo, Reason, TokenLogprobs, Usage


@dataclass(frozen=True, slots=True)
class Result:
    """A finished request.

    Attributes:
        id: of the request.
        text: all of it.
        ids: all token ids.
        reason: ``stop`` or ``length``.
        usage: tokens of the prompt and of the output.
        logprobs: a token each, where they were asked for.
        cumulative_logprob: their sum.
        echo: the prompt, where it was asked for; it is no part of ``text``.
        answer: of a request to an encoder, what it answers.
        results: of a request with several, each of them in order; then ``text``, ``ids``, ``logprobs`` and ``echo`` are
            the first one's, ``reason`` and ``usage`` those of all.
    """

    id: str
    text: str
    ids: tuple[int, ...]
    reason: Reason
    usage: Usage
    logprobs: tuple[TokenLogprobs, ...] = ()
    cumulative_logprob: float | None = None
    echo: Echo | None = None
    answer: Answer | None = None
    results: tuple["Result", ...] = ()

    @property
    def choices(self) -> tuple["Result", ...]:
        """All results, in order; of a request with one, that one."""
        return self.results or (self,)

    @classmethod
    def of(cls, request_id: str, pieces: Sequence[Chunk]) -> "Result":
        """Put the pieces of one result together.

        Raises:
            DecodeError: the last piece is not an end.
        """
        done = pieces[-1].done if pieces else None
        if done is None:
            raise DecodeError(f"the result of {request_id} has no end")
        indices = sorted({piece.index for piece in pieces if piece.index is not None})
        if indices:
            results = tuple(
                cls.of(f"{request_id}/{index}", [replace(p, index=None) for p in pieces if p.index == index])
                for index in indices
            )
            return replace(results[0], id=request_id, reason=done.reason, usage=done.usage, results=results)
        return cls(
            request_id,
            "".join(piece.text for piece in pieces),
            tuple(token for piece in pieces for token in piece.ids),
            done.reason,
            done.usage,
            tuple(token for piece in pieces for token in piece.logprobs),
            done.cumulative_logprob,
            next((piece.echo for piece in pieces if piece.echo is not None), None),
            None if done.result is None else read_answer(done.result),
        )


def several_texts(request_id: str) -> InvalidRequestError:
    """What is raised where the text of a request is read as one, and it has several."""
    return InvalidRequestError(
        f"n: {request_id} has several results; read them with stream() or result()", field="n", request_id=request_id
    )


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
