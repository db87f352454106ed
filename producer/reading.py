"""How a result is read to its end, whatever happens to the server meanwhile: a state machine without input or output.

A handle asks ``next_step`` what to do, does it, and reports what came of it. XREAD from the last token on is all of it
while things go well. When a read finds nothing, the machine looks whether the request is still there: an end may lie
*behind* the reader (the broker came back from an older state and the request ended there), and a request that this
handle submitted may be gone (then it is sent again).
"""

from dataclasses import dataclass, replace

from headrace.connection import MAX_BLOCK_MS
from headrace.errors import (
    BrokerUnavailableError,
    CancelledError,
    DecodeError,
    ExpiredError,
    HeadraceError,
    OverloadedError,
    UnknownRequestError,
)
from headrace.producer.cutting import Cutter, without_end
from headrace.producer.outcome import failure_of
from headrace.producer.patience import Patience
from headrace.producer.submission import Submission, Via
from headrace.wire import Chunk, Done

#: Silence after which a request sent by XADD is sent again; it doubles. Its sender may not be permitted to look.
RESEND_AFTER_S = 15.0
#: How often an end is looked for in vain behind the reader. Once may be chance: the server went back in between.
_MAX_REWINDS = 8


@dataclass(frozen=True, slots=True)
class Read:
    """Read chunks behind the first ``num_tokens``, waiting up to ``block_ms`` for one; report with ``got``."""

    num_tokens: int
    block_ms: int
    with_head: bool = True


@dataclass(frozen=True, slots=True)
class Look:
    """Read the request's state, None if it is unknown; report with ``saw``."""


@dataclass(frozen=True, slots=True)
class Send:
    """Submit again; report with ``sent``."""

    submission: Submission


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for a while; nothing to report."""

    seconds: float


Step = Read | Look | Send | Pause


class Reading:
    """One pass over one result.

    Attributes:
        request_id: whose.
        ended: the result is complete and has been handed out.
        closed: the end was seen, whether it was a result or an error.
        children: names of the results, where the request has several and its head was seen; else empty.
    """

    def __init__(
        self,
        request_id: str,
        submission: Submission | None,
        cutter: Cutter,
        *,
        via: Via,
        now_s: float,
        timeout_s: float,
        wait_s: float,
    ) -> None:
        self.request_id = request_id
        self.ended = self.closed = False
        self.children: tuple[str, ...] = ()
        self._submission = submission
        self._cutter = cutter
        self._via = via
        self._timeout_s = timeout_s
        self._patience = Patience(now_s + timeout_s)
        self._known_by_s = now_s + wait_s
        self._resend_at_s, self._resend_after_s = now_s + RESEND_AFTER_S, RESEND_AFTER_S
        self._failure: HeadraceError | None = None
        self._trouble: HeadraceError | None = None
        self._started = False
        self._num_rewinds = 0
        # One token back: the chunk that ends exactly where the caller stands may be the last one.
        first = max(cutter.num_tokens - 1, 0)
        self._steps: list[Step] = [Read(first, 0 if submission is None else MAX_BLOCK_MS)]

    @property
    def failure(self) -> HeadraceError | None:
        """What ``next_step`` would raise, but for the time."""
        return self._failure

    def next_step(self, now_s: float) -> Step:
        """What to do now.

        Raises:
            TimeoutError: time is up.
            RequestError: the request ended in an error, or is unknown.
        """
        if self._failure is not None:
            raise self._failure
        left_s = self._patience.left_s(now_s)
        if left_s == 0 and self._started:
            raise TimeoutError(f"no end of {self.request_id} within {self._timeout_s:g} s") from self._trouble
        self._started = True
        step = self._steps.pop(0) if self._steps else self._read(MAX_BLOCK_MS)
        if isinstance(step, Read) and step.block_ms > 0:
            return replace(step, block_ms=max(1, int(min(step.block_ms, MAX_BLOCK_MS, left_s * 1000))))
        return step

    def got(self, chunks: list[Chunk], now_s: float) -> list[Chunk]:
        """Take what a read found; return what the caller has not had yet."""
        pieces: list[Chunk] = []
        try:
            for chunk in chunks:
                self.children = chunk.children or self.children
                piece = self._cutter.cut(chunk)
                piece = piece if piece is None or piece.done is None else self._close(piece, piece.done)
                pieces += [piece] if piece else []
                if self.ended or self._failure:
                    return pieces
        except DecodeError as error:
            self._failure = error
            return pieces
        if pieces:
            self._resend_at_s = now_s + self._resend_after_s
            self._num_rewinds = 0
            self._all_is_well()
        else:
            self._nothing_new(now_s)
        return pieces

    def saw(self, state: str | None, now_s: float) -> None:
        """Take the request's state."""
        if state is not None:
            self._all_is_well()
        if state == "done":
            self._num_rewinds += 1
            self._steps = [Read(0, 0)]
            return
        self._num_rewinds = 0
        if state == "forked" and not self.children:
            self._steps = [Read(0, 0)]
        elif state == "tomb":
            self._failure = CancelledError(f"{self.request_id} was cancelled", request_id=self.request_id)
        elif state is None and self._submission is not None:
            self._steps = self._sending(self._submission, now_s)
        elif state is None and now_s < self._known_by_s:
            self._steps = [self._read(int((self._known_by_s - now_s) * 1000) + 1)]
        elif state is None:
            self._failure = self._unknown()

    def sent(self) -> None:
        """Take that the submission went in."""
        self._all_is_well()

    def failed(self, error: BrokerUnavailableError | OverloadedError, now_s: float) -> None:
        """Take that a step could not be done for now: pause, then see what became of the request meanwhile."""
        self._trouble = error
        pause = Pause(self._patience.pause_s(now_s))
        if self._via == "xadd" and self._submission is not None:
            self._steps = [pause, *self._sending(self._submission, now_s)]
        else:
            self._steps = [pause, self._read(0)]

    def _read(self, block_ms: int) -> Read:
        num_tokens = self._cutter.num_tokens
        # Behind a token there is no head; before it, a head that was seen must not be found again and again.
        return Read(num_tokens, block_ms, with_head=num_tokens > 0 or not self._cutter.has_head)

    def _all_is_well(self) -> None:
        self._trouble = None
        self._patience.renew()

    def _close(self, piece: Chunk, done: Done) -> Chunk | None:
        """Take the last piece; of an end in an error only the tokens are handed out."""
        self.closed = True
        self._failure = failure_of(done, self.request_id)
        self.ended = self._failure is None
        return piece if self.ended else without_end(piece)

    def _nothing_new(self, now_s: float) -> None:
        if self._num_rewinds == _MAX_REWINDS:
            self._failure = self._unknown()
        elif self._via == "move":
            self._steps = [Look()]
        elif now_s >= self._resend_at_s:
            self._resend_after_s *= 2
            self._resend_at_s = now_s + self._resend_after_s
            self._steps = [Read(0, 0)]
            if self._submission is not None:
                self._steps += self._sending(self._submission, now_s)

    def _sending(self, submission: Submission, now_s: float) -> list[Step]:
        try:
            return [Send(submission.again(now_s))]
        except ExpiredError as error:
            self._failure = error
            return []

    def _unknown(self) -> UnknownRequestError:
        return UnknownRequestError(
            f"{self.request_id} is unknown: never submitted, or its result's time to live has ended",
            request_id=self.request_id,
        )
