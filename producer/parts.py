"""Requests that make up one answer: sent a few at a time, read together. A state machine without input or output.

A call that brings more texts than one request should becomes several. Whoever drives this sends what ``next_sends``
says, reports with ``went`` or ``refused``, then does a round of ``bundle`` and gives what came to ``take``.
"""

from collections import deque
from collections.abc import Sequence
from itertools import islice

from headrace.encoder_result import Answer, read_answer
from headrace.errors import CancelledError, DecodeError, OverloadedError
from headrace.producer.bundle import Bundle
from headrace.producer.cutting import Cutter
from headrace.producer.reading import Reading
from headrace.producer.refusal import counted_from
from headrace.producer.submission import Submission
from headrace.wire import Chunk

#: Requests in the queue at once: enough for several workers' next batches.
IN_FLIGHT = 64
#: Sent together; each is a script that holds the server for some 30 us.
_MAX_SENDS = 32


class Parts:
    """One pass over the requests of one call.

    Args:
        submissions: of the requests, in the order of their texts.
        end_s: when time is up, by the monotonic clock.

    Attributes:
        bundle: of the requests that are in the queue.
    """

    def __init__(self, submissions: Sequence[Submission], end_s: float) -> None:
        self.bundle = Bundle()
        self._first_texts = [submission.first_text for submission in submissions]
        self._waiting = deque(enumerate(submissions))
        self._answers: list[Answer | None] = [None] * len(submissions)
        self._end_s = end_s
        self._is_full = False
        self._is_withdrawn = False

    @property
    def ended(self) -> bool:
        """All answers are there."""
        return not self.bundle and (self._is_withdrawn or not self._waiting)

    @property
    def num_done(self) -> int:
        """Requests whose answers are there."""
        return sum(answer is not None for answer in self._answers)

    @property
    def answers(self) -> list[Answer]:
        """An answer a request, once all has ended.

        Raises:
            CancelledError: some were withdrawn.
        """
        if self._is_withdrawn:
            raise CancelledError("the call was withdrawn")
        return [answer for answer in self._answers if answer is not None]

    def next_sends(self, now_s: float) -> list[Submission]:
        """The requests to send together now, possibly none.

        Raises:
            ExpiredError: the deadline of one has passed while it waited to be sent.
        """
        room = 0 if self._is_full or self._is_withdrawn else min(IN_FLIGHT - len(self.bundle), _MAX_SENDS)
        return [submission.again(now_s) for _, submission in islice(self._waiting, max(0, room))]

    def withdraw(self) -> None:
        """Send nothing more. Another thread may call it."""
        self._is_withdrawn = True

    def went(self, places: Sequence[int], now_s: float) -> None:
        """Take that some of them are in the queue: those at these places of ``next_sends``, in ascending order."""
        sent = [self._waiting[place] for place in places]
        for place in reversed(places):
            del self._waiting[place]
        for index, submission in sent:
            left_s = max(0.0, self._end_s - now_s)
            reading = Reading(
                submission.request_id,
                submission,
                Cutter(),
                via=submission.via,
                now_s=now_s,
                timeout_s=left_s,
                wait_s=0,
            )
            self.bundle.add(index, reading)

    def refused(self, error: OverloadedError) -> None:
        """Take that the backlog is over its limit: those that are in the queue make room when they end.

        Raises:
            OverloadedError: none of them is.
        """
        if not self.bundle:
            raise error
        self._is_full = True

    def take(self, pieces: Sequence[Chunk]) -> None:
        """Take what a round has read.

        Raises:
            RequestError: what became of the first request that ended in an error.
            DecodeError: an answer cannot be read.
        """
        for piece in pieces:
            if piece.done is not None and piece.index is not None:
                if piece.done.result is None:
                    raise DecodeError("the result of a request to an encoder holds no answer")
                self._answers[piece.index] = read_answer(piece.done.result)
        for index, reading in self.bundle.take_ended():
            self._is_full = False
            if reading.failure is not None:
                with counted_from(self._first_texts[index]):
                    raise reading.failure
