"""The several results of one request, read together: a state machine without input or output.

Each result and the request itself has a ``Reading``; a round does what all of them want next, their reads in one
command. A result that ends in an error does not keep the others from being read: its error comes at the very end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from headrace.entries import Position
from headrace.errors import BrokerUnavailableError, OverloadedError, UnknownRequestError
from headrace.producer.reading import Look, Pause, Read, Reading, Send
from headrace.producer.submission import Submission
from headrace.wire import Chunk

#: How often a result is looked for whose request has ended already.
_MAX_LATE_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Round:
    """What to do now, in this order; report with the method of the same sense.

    Attributes:
        pause_s: do nothing for so long; nothing to report.
        sends: submit again; ``sent``, each.
        looks: read these requests' states; ``saw``, each.
        reads: results, and behind which position; ``got``, all together.
        block_ms: how long to wait for any of them.
    """

    pause_s: float
    sends: tuple[Submission, ...]
    looks: tuple[str, ...]
    reads: Mapping[str, Position]
    block_ms: int


class Group:
    """One pass over the results of one request.

    Args:
        parent: of the request itself; may have ended.
        children: of its results, in order.
    """

    def __init__(self, parent: Reading, children: Sequence[Reading]) -> None:
        self._parent = parent
        self._children = tuple(children)
        self._readings = {reading.request_id: reading for reading in (*children, parent)}
        self._end: Chunk | None = None
        self._num_late_rounds = 0

    @property
    def ended(self) -> bool:
        """Nothing is left to read."""
        return not any(_is_open(reading) for reading in self._readings.values())

    @property
    def closed(self) -> bool:
        """The request's own end was seen."""
        return self._parent.closed

    def next_round(self, now_s: float) -> Round:
        """What to do now.

        Raises:
            TimeoutError: time is up.
            RequestError: the request has ended, and a result of it is not there.
        """
        self._check_late()
        steps = {name: reading.next_step(now_s) for name, reading in self._readings.items() if _is_open(reading)}
        reads = {name: step for name, step in steps.items() if isinstance(step, Read)}
        sends = {step.submission.request_id: step.submission for step in steps.values() if isinstance(step, Send)}
        is_busy = len(reads) < len(steps)
        return Round(
            max((step.seconds for step in steps.values() if isinstance(step, Pause)), default=0.0),
            tuple(sends.values()),
            tuple(name for name, step in steps.items() if isinstance(step, Look)),
            {name: Position(step.num_tokens, step.with_head) for name, step in reads.items()},
            0 if is_busy else min((step.block_ms for step in reads.values()), default=0),
        )

    def got(self, asked: Round, chunks: Mapping[str, list[Chunk]], now_s: float) -> list[Chunk]:
        """Take what a round read; return what the caller has not had yet, with the index of its result."""
        pieces: list[Chunk] = []
        # Where one result has something new, the silence of the others means nothing.
        for name in chunks or asked.reads:
            reading = self._readings[name]
            found = reading.got(chunks.get(name, []), now_s)
            if reading is self._parent:
                self._end = next((piece for piece in found if piece.done), self._end)
            else:
                index = self._children.index(reading)
                pieces += [replace(piece, index=index) for piece in found]
        return pieces

    def saw(self, request_id: str, state: str | None, now_s: float) -> None:
        """Take a request's state."""
        self._readings[request_id].saw(state, now_s)

    def sent(self) -> None:
        """Take that the submission went in."""
        for reading in self._readings.values():
            reading.sent()

    def failed(self, error: BrokerUnavailableError | OverloadedError, now_s: float) -> None:
        """Take that a round could not be done for now."""
        for reading in self._readings.values():
            if _is_open(reading):
                reading.failed(error, now_s)

    def take_parent(self, pieces: Sequence[Chunk]) -> None:
        """Take what was read of the request itself before its results were known."""
        self._end = next((piece for piece in pieces if piece.done), self._end)

    def end(self) -> Chunk:
        """The request's own last chunk, once all has ended.

        Raises:
            RequestError: what became of the first result that ended in an error.
        """
        for reading in (*self._children, self._parent):
            if reading.failure is not None:
                raise reading.failure
        if self._end is None:
            raise UnknownRequestError("the request has no end", request_id=self._parent.request_id)
        return self._end

    def _check_late(self) -> None:
        if _is_open(self._parent):
            return
        self._num_late_rounds += 1
        if self._num_late_rounds > _MAX_LATE_ROUNDS:
            missing = next(reading.request_id for reading in self._children if _is_open(reading))
            raise self._parent.failure or UnknownRequestError(
                f"{missing} is not there although its request has ended", request_id=missing
            )


def _is_open(reading: Reading) -> bool:
    return not reading.ended and reading.failure is None
