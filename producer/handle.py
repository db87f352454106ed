"""One request as its producer holds it."""

import time
from collections.abc import Iterator

from headrace.errors import BrokerUnavailableError, OverloadedError
from headrace.producer.cutting import Cutter
from headrace.producer.held_request import HeldRequest
from headrace.producer.line import Line
from headrace.producer.options import checked_seconds
from headrace.producer.outcome import Result, several_texts
from headrace.producer.reading import Look, Pause, Read, Reading, Send, Step
from headrace.producer.rounds import take_round
from headrace.wire import Chunk


class Handle(HeldRequest[Line]):
    """Reads and cancels one request. Any number of handles may read one result, from any token on, at any time.

    A handle that made the submission sends it again if the broker comes back without it, until its end has been seen.

    Attributes:
        id: the request's name; ``Client.attach`` makes another handle of it, in any process.
        known_already: the id that was to be submitted was known before: what is read here is that request's result, not
            a new one's. (Its own, if the connection broke before the answer came.) By XADD nobody can tell: False.
    """

    def stream(
        self, after: int = 0, *, after_chars: int | None = None, timeout_s: float | None = None
    ) -> Iterator[Chunk]:
        """Read the result as it grows, each token and each character once; the last chunk has ``done``.

        A server that goes away is waited for. Chunks need not be cut as the worker cut them. Whoever asked for an echo
        gets it first, in a chunk without tokens (``Chunk.echo``), if nothing is held. Of a request for several results
        chunks come as they are written and say of which result they are (``Chunk.index``); the last one is the
        request's own, with the usage of all.

        Args:
            after: tokens that the caller holds already.
            after_chars: Unicode code points of the text that it holds. Needed only where ``after`` may lie inside a
                chunk, as it may once the server has come back from an older state.
            timeout_s: seconds for the whole result, default the client's. A server that falls silent without closing
                its connections is noticed after up to 40 s, which may come on top.

        Raises:
            TimeoutError: the result has not ended in time.
            CancelledError: the request was cancelled.
            ExpiredError: its deadline passed.
            InvalidRequestError: the fleet refused it, or ``timeout_s`` is negative; ``field`` names the culprit.
            OverloadedError: the fleet refused it because its backlog is over the limit.
            FailedError: the fleet gave it up; ``code`` says why.
            UnknownRequestError: there is no such request (any more).
            ValueError: tokens are held of a request for several results: read one of them, ``<id>/<index>``.
            DecodeError: the result has a gap, or changed after it was read.
        """
        timeout_s = checked_seconds(self._timeout_s if timeout_s is None else timeout_s)
        reading = self._reading(self.id, Cutter(after, after_chars), timeout_s, self._wait_s)
        while not reading.ended:
            step = reading.next_step(time.monotonic())
            try:
                pieces = self._take(step, reading)
            except (BrokerUnavailableError, OverloadedError) as error:
                reading.failed(error, time.monotonic())
                continue
            if reading.closed:
                self._submission = None
            if reading.children:
                yield from self._follow(reading, pieces, timeout_s, num_held=after)
                return
            yield from pieces

    def text(self, *, timeout_s: float | None = None) -> Iterator[str]:
        """The text in pieces, as it grows, behind the prompt's if an echo was asked for; raises what ``stream`` raises.

        Raises:
            InvalidRequestError: the request has several results, whose pieces would be mixed.
        """
        for chunk in self.stream(timeout_s=timeout_s):
            if chunk.index is not None:
                raise several_texts(self.id)
            if chunk.echo is not None:
                yield chunk.echo.text
            if chunk.text:
                yield chunk.text

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the end and return all of it, of several results each; raises what ``stream`` raises."""
        return Result.of(self.id, list(self.stream(timeout_s=timeout_s)))

    def cancel(self) -> str:
        """End the request; return the state it was in (``done`` if too late), "" if it was sent by XADD.

        Raises:
            BrokerUnavailableError: no server answers; the request may have been cancelled.
        """
        return self._line.cancel(self.id, self._stream, self._via)

    def _follow(self, parent: Reading, pieces: list[Chunk], timeout_s: float, *, num_held: int) -> Iterator[Chunk]:
        """Read on all results of a request that has turned out to have several."""
        group = self._group(parent, timeout_s, num_held=num_held)
        group.take_parent(pieces)
        while not group.ended:
            step = group.next_round(time.monotonic())
            try:
                pieces = take_round(self._line, step, group)
            except (BrokerUnavailableError, OverloadedError) as error:
                group.failed(error, time.monotonic())
                continue
            if group.closed:
                self._submission = None
            yield from pieces
        yield group.end()

    def _take(self, step: Step, reading: Reading) -> list[Chunk]:
        match step:
            case Read(num_tokens, block_ms, with_head):
                chunks = self._line.broker().chunks_after(self.id, num_tokens, block_ms, with_head=with_head)
                return reading.got(chunks, time.monotonic())
            case Look():
                reading.saw(self._line.broker().request_fields(self.id).get("state"), time.monotonic())
            case Send(submission):
                self._line.send(submission)
                reading.sent()
            case Pause(seconds):
                time.sleep(seconds)
        return []
