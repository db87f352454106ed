"""A request made ready to be sent, once or again: checked, named, seeded, priced and encoded. Pure but for the dice."""

import operator
import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from headrace.config import Settings
from headrace.encoder_request import parse_request
from headrace.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    ExpiredError,
    InvalidRequestError,
    OverloadedError,
)
from headrace.keys import LANES, REQUEST_ID_PATTERN, Lane, RequestStream, check_tenant
from headrace.moves import SubmitCall, Submitted
from headrace.producer.cost import estimate_cost_tokens
from headrace.producer.options import checked_id
from headrace.wire import Encoding, encode_body

#: How a request gets into its stream: by the ``submit`` move, or with a plain XADD where scripts are not permitted.
Via = Literal["move", "xadd"]
#: What a submission waits for: the server's memory, or the server's disk as well.
Durability = Literal["memory", "fsync"]


#: One of them makes a body large.
_BULKY_FIELDS = ("prompt", "messages", "input", "documents")


@dataclass(frozen=True, slots=True)
class Submission:
    """Everything that sending a request takes. Sent twice, it is the same request.

    Attributes:
        request_id: its name.
        named_by_caller: the caller chose the name, so that the id may belong to an earlier request.
        stream: lane and tenant.
        encoding: of the body and of the result.
        fields: the request's fields as they were given, and the seed.
        cost_tokens: an estimate of prompt plus output.
        ttl_ms: life of the result.
        via: how it is sent.
        durability: what sending waits for.
        made_s: when, by the monotonic clock.
        first_text: of a call that was divided among several requests, which text is this one's first.
    """

    request_id: str
    named_by_caller: bool
    stream: RequestStream
    encoding: Encoding
    fields: Mapping[str, Any]
    cost_tokens: int
    ttl_ms: int
    via: Via
    durability: Durability
    made_s: float
    first_text: int = 0

    @property
    def body(self) -> bytes:
        """The encoded fields."""
        return encode_body(dict(self.fields), self.encoding)

    def call(self, settings: Settings) -> SubmitCall:
        """The move that sends it."""
        return SubmitCall(
            self.request_id,
            self.stream,
            self.encoding,
            self.body,
            self.cost_tokens,
            self.ttl_ms,
            self.fields.get("reply_to", ""),
            settings,
        )

    def accepted(self, answer: Submitted) -> Submitted:
        """The move's answer, if the request is in the queue (or was withdrawn before it came).

        Raises:
            OverloadedError: it was refused.
        """
        if answer.verdict == "overloaded":
            raise OverloadedError(
                f"the backlog is over its limit: {answer.detail} tokens wait; submit again later",
                request_id=self.request_id,
            )
        return answer

    def belongs_to_another(self, answer: Submitted) -> bool:
        """Whether the id may be an earlier request's: a drawn one is not, there the answer was lost on its way."""
        return answer.verdict == "known" and self.named_by_caller

    def again(self, now_s: float) -> "Submission":
        """The same request later: a deadline counts from the entry, and this one's first entry is gone.

        Raises:
            ExpiredError: the deadline has passed.
        """
        if "deadline_ms" not in self.fields:
            return self
        left_ms = int(self.fields["deadline_ms"] - (now_s - self.made_s) * 1000)
        if left_ms < 1:
            raise ExpiredError(f"the deadline of {self.request_id} has passed", request_id=self.request_id)
        return replace(self, fields={**self.fields, "deadline_ms": left_ms}, made_s=now_s)


def not_acknowledged(request_id: str, error: BrokerUnavailableError, *, was_connected: bool) -> BrokerUnavailableError:
    """The error of whoever gives up a submission, which tells what he may rely on.

    Args:
        request_id: of the request.
        error: of the last attempt.
        was_connected: whether a server ever answered; nothing was sent to one that did not.
    """
    outcome = "may or may not have gone in" if was_connected else "has not gone in"
    return BrokerUnavailableError(f"{request_id} {outcome}: {error}")


def accepted_of(submissions: Sequence[Submission], answers: Sequence[Submitted]) -> tuple[int, ...]:
    """Which of submissions that were sent together are in the queue, by their places among them.

    They need not be the first ones: between a refusal and the next submission, the scheduler may have made room.

    Raises:
        OverloadedError: none is.
    """
    places = tuple(place for place, answer in enumerate(answers) if answer.verdict != "overloaded")
    if not places:
        submissions[0].accepted(answers[0])
    return places


def prepare(
    settings: Settings,
    prompt: str | Sequence[int] | None,
    messages: Sequence[Mapping[str, str]] | None,
    fields: Mapping[str, Any],
    *,
    lane: Lane,
    tenant: str,
    request_id: str | None,
    encoding: Encoding,
    via: Via,
    durability: Durability,
) -> Submission:
    """Check a request and make it ready; an id and a seed that are not given are drawn.

    An answer by a seed that nobody chose will not be asked for again: it is kept out of the response cache.

    Raises:
        InvalidRequestError: a field breaks a rule of the contract, or the body is larger than ``max_body_bytes``.
    """
    stream = _stream(lane, tenant)
    _check_choices(encoding, via, durability)
    name = _name(request_id, tenant)
    if "id" in fields:
        raise InvalidRequestError("id: give it as request_id", field="id", request_id=name)
    asked = {"prompt": _token_ids(prompt), "messages": messages, **fields}
    given = {field: _plain(value) for field, value in asked.items() if value is not None}
    if given.get("task", "generate") == "generate" and "seed" not in given:
        given["seed"] = secrets.randbits(63)
        if given.get("temperature", 1.0) != 0:
            given.setdefault("cache", False)
    try:
        request = parse_request({**given, "id": name})
    except InvalidRequestError as error:
        raise InvalidRequestError(str(error), field=error.field, request_id=name) from error
    submission = Submission(
        name,
        request_id is not None,
        stream,
        encoding,
        request.model_dump(exclude_unset=True, exclude={"id"}),
        estimate_cost_tokens(request, settings),
        min(request.ttl_ms or settings.result_ttl_ms, settings.max_result_ttl_ms),
        via,
        durability,
        time.monotonic(),
    )
    _check_size(submission, settings.max_body_bytes)
    return submission


def _token_ids(prompt: object) -> object:
    """Text as it is; any sequence of integers, a range or an array say, as the list that the schema asks for.

    Raises:
        InvalidRequestError: it is neither.
    """
    if prompt is None or isinstance(prompt, str):
        return prompt
    if isinstance(prompt, bytes | bytearray | Mapping) or not hasattr(prompt, "__getitem__"):
        raise InvalidRequestError(f"prompt: must be text or token ids, not {type(prompt).__name__}", field="prompt")
    try:
        # A bool stays one, which the schema refuses.
        return [token if isinstance(token, bool) else operator.index(token) for token in prompt]  # type: ignore[attr-defined]
    except TypeError as error:
        raise InvalidRequestError(
            f"prompt: must be text or token ids, one integer each: {error}", field="prompt"
        ) from error


def _plain(value: object) -> object:
    """A tuple, or a list of them, as the lists that the schema asks for."""
    if isinstance(value, list | tuple):
        return [list(item) if isinstance(item, tuple) else item for item in value]
    return value


def _stream(lane: Lane, tenant: str) -> RequestStream:
    if lane not in LANES:
        raise InvalidRequestError(f"lane: {lane!r} is none of {', '.join(LANES)}", field="lane")
    if not isinstance(tenant, str):
        raise InvalidRequestError(f"tenant: must be a string, {tenant!r} is none", field="tenant")
    try:
        return RequestStream(lane, check_tenant(tenant) if tenant else "")
    except ConfigurationError as error:
        raise InvalidRequestError(f"tenant: {error}", field="tenant") from error


def _check_choices(encoding: Encoding, via: Via, durability: Durability) -> None:
    for name, value, choices in (
        ("encoding", encoding, ("json", "mp")),
        ("via", via, ("move", "xadd")),
        ("durability", durability, ("memory", "fsync")),
    ):
        if value not in choices:
            raise InvalidRequestError(f"{name}: {value!r} is none of {', '.join(choices)}", field=name)


def _name(request_id: str | None, tenant: str) -> str:
    prefix = f"{tenant}:" if tenant else ""
    if request_id is None:
        return prefix + uuid.uuid4().hex
    checked_id(request_id, REQUEST_ID_PATTERN)
    if not request_id.startswith(prefix):
        raise InvalidRequestError(
            f"id: of a request of {tenant} must begin with {prefix}", field="id", request_id=request_id
        )
    return request_id


def _check_size(submission: Submission, max_body_bytes: int) -> None:
    num_bytes = len(submission.body)
    if num_bytes > max_body_bytes:
        field = next((name for name in _BULKY_FIELDS if name in submission.fields), "body")
        raise InvalidRequestError(
            f"{field}: the request has {num_bytes} bytes, at most {max_body_bytes} are allowed",
            field=field,
            request_id=submission.request_id,
        )
