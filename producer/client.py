"""The synchronous client: submit, stream, cancel. A thin shell: what is decided, both clients share."""

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from headrace.config import Settings
from headrace.encoder_result import Answer
from headrace.errors import BrokerUnavailableError, InvalidRequestError
from headrace.keys import Lane
from headrace.producer.encoder_calls import EncoderCalls
from headrace.producer.encoder_submission import prepare_encoder
from headrace.producer.encoding import EncoderCall
from headrace.producer.handle import Handle
from headrace.producer.line import Line
from headrace.producer.options import (
    ATTACH_WAIT_S,
    SUBMIT_TIMEOUT_S,
    TIMEOUT_S,
    checked_id,
    checked_seconds,
    settings_of,
    stream_of,
)
from headrace.producer.rounds import take_all
from headrace.producer.submission import Durability, Via, not_acknowledged, prepare
from headrace.wire import Encoding


class Client(EncoderCalls):
    """Submits requests to one queue. Safe to share between threads; connects at its first use.

    ::

        with Client(url="redis://127.0.0.1:6379/0", queue="smollm2-135m") as client:
            for piece in client.generate("Once upon a time", max_tokens=64):
                print(piece, end="", flush=True)

    The result's stream is what counts, and what this client reads. Whoever wants to may SUBSCRIBE to the channel of
    the same name (``Keys.out``), too: it carries the same chunks for those who subscribed before the request went in,
    and loses them silently when a connection breaks.

    Args:
        settings: server, queue and limits; default: environment and file, with ``url`` and ``queue`` on top.
        url: the server's, ``redis://``, ``rediss://`` or ``unix://``.
        queue: tag of the queue's keys.
        via: how requests are sent unless a submission says otherwise: ``move`` (one script: knows the backlog and the
            id), or ``xadd``, all that a tenant with XADD and XREAD alone can do: such a client does not see whether
            the server is fit, that the backlog is full, or that an id is unknown.
        timeout_s: seconds for a whole result where a call does not say; ``math.inf`` waits for ever.
        submit_timeout_s: seconds for which a submission or a cancellation waits for a server that is away.

    Raises:
        ConfigurationError: a setting is wrong.
        InvalidRequestError: a time is negative.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        url: str | None = None,
        queue: str | None = None,
        via: Via = "move",
        timeout_s: float = TIMEOUT_S,
        submit_timeout_s: float = SUBMIT_TIMEOUT_S,
    ) -> None:
        self.settings = settings_of(settings, url, queue)
        self._via: Via = via
        self._timeout_s = checked_seconds(timeout_s)
        self._line = Line(self.settings, via, checked_seconds(submit_timeout_s, "submit_timeout_s"))

    def submit(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        lane: Lane = "normal",
        tenant: str = "",
        request_id: str | None = None,
        encoding: Encoding = "mp",
        durability: Durability = "memory",
        via: Via | None = None,
        **fields: Any,
    ) -> Handle:
        """Put a request into the queue.

        Args:
            prompt: text, or token ids as any sequence of integers; or else
            messages: a chat, each message with ``role`` and ``content``.
            lane: ``interactive``, ``normal`` or ``bulk``.
            tenant: whose; the tenant must be one of the fleet's ``tenants``, or nobody reads its stream.
            request_id: its name; drawn if absent. Submitting a name that exists changes nothing: the handle says so
                (``known_already``), and reads what is there. A tenant's begin with ``<tenant>:``.
            encoding: of request and result.
            durability: ``memory`` promises what the server's fsync policy gives; ``fsync`` is taken only by a server
                that syncs every write before it answers.
            via: ``move`` or ``xadd``, default the client's.
            **fields: the other fields of ``headrace.request.Request``: ``max_tokens``, ``temperature``, ``seed``,
                ``stop``, ``deadline_ms``, ``ttl_ms``, …; or with ``task``, of ``headrace.encoder_request``.

        Raises:
            InvalidRequestError: ``field`` names the culprit, the message its limit; nothing was sent.
            OverloadedError: the backlog is over its limit, or the server's memory is full.
            BrokerUnavailableError: no server answers; the request may have gone in, and submitting it again under the
                same id is safe.
            ConfigurationError: the server refuses, or does not give the durability that was asked for.
        """
        submission = prepare(
            self.settings,
            prompt,
            messages,
            fields,
            lane=lane,
            tenant=tenant,
            request_id=request_id,
            encoding=encoding,
            via=via or self._via,
            durability=durability,
        )
        try:
            answer = self._line.persist(lambda: self._line.send(submission))
        except BrokerUnavailableError as error:
            raise not_acknowledged(submission.request_id, error, was_connected=self._line.was_connected) from error
        return Handle(
            self._line,
            submission.request_id,
            None if submission.belongs_to_another(answer) else submission,
            known_already=submission.belongs_to_another(answer),
            stream=submission.stream,
            via=submission.via,
            timeout_s=self._timeout_s,
            wait_s=0,
        )

    def generate(
        self, prompt: str | Sequence[int] | None = None, *, timeout_s: float | None = None, **fields: Any
    ) -> Iterator[str]:
        """Submit when the first piece is asked for, and yield the text as it grows.

        Leaving the iterator before its end cancels the request: nobody else knows its name. Takes what ``submit``
        takes, and raises what ``submit`` and ``Handle.stream`` raise.
        """
        if fields.get("n", 1) != 1:
            raise InvalidRequestError("n: generate() yields one text; submit, and read stream() or result()", field="n")
        limit_s = checked_seconds(self._timeout_s if timeout_s is None else timeout_s)
        handle = self.submit(prompt, **fields)
        try:
            yield from handle.text(timeout_s=limit_s)
        except GeneratorExit:
            handle.cancel()
            raise

    def _encode(
        self, call: EncoderCall, timeout_s: float | None, texts_per_request: int, options: dict[str, Any]
    ) -> list[Answer]:
        limit_s = checked_seconds(self._timeout_s if timeout_s is None else timeout_s)
        submissions = prepare_encoder(self.settings, call, texts_per_request, options, self._via)
        return take_all(self._line, submissions, limit_s)

    def attach(self, request_id: str, *, wait_s: float = ATTACH_WAIT_S) -> Handle:
        """A handle of a request that somebody else submitted, perhaps in another life of this process.

        Nothing is sent until the handle is used. A request that was sent by XADD is unknown until the scheduler has
        admitted it, which takes milliseconds where the fleet keeps up.

        Args:
            request_id: its name.
            wait_s: seconds for which the request may still be unknown.

        Raises:
            InvalidRequestError: this cannot be a request's id, or no time to wait.
        """
        return Handle(
            self._line,
            checked_id(request_id),
            None,
            stream=stream_of(request_id),
            via=self._via,
            timeout_s=self._timeout_s,
            wait_s=checked_seconds(wait_s, "wait_s"),
        )

    def cancel(self, request_id: str) -> str:
        """End a request; return the state it was in: ``unknown`` cancels it once it comes, "" if sent by XADD.

        Raises:
            InvalidRequestError: this cannot be a request's id.
            BrokerUnavailableError: no server answers; the request may have been cancelled.
        """
        return self.attach(request_id).cancel()

    def close(self) -> None:
        """Close every connection."""
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
