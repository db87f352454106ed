"""Requests of no kinship read together: a state machine without input or output.

As in a ``Group`` a round does what all of them want next, their reads in one command. There is no parent here: requests
come and go, and each has an end of its own, be it an error.
"""

from collections.abc import Mapping
from dataclasses import replace

from headrace.entries import Position
from headrace.errors import BrokerUnavailableError, OverloadedError
from headrace.producer.group import Round
from headrace.producer.reading import Look, Pause, Read, Reading, Send, Step
from headrace.wire import Chunk


class Bundle:
    """The requests that are being read, each under the number by which the caller knows it."""

    def __init__(self) -> None:
        self._readings: dict[str, tuple[int, Reading]] = {}

    def __len__(self) -> int:
        return len(self._readings)

    @property
    def names(self) -> list[str]:
        """Of the requests that are being read."""
        return list(self._readings)

    def add(self, index: int, reading: Reading) -> None:
        """Read this one, too."""
        self._readings[reading.request_id] = (index, reading)

    def remove(self, request_id: str) -> None:
        """Do not read this one after all."""
        del self._readings[request_id]

    def next_round(self, now_s: float) -> Round:
        """What to do now; there must be a request that has not ended.

        Raises:
            TimeoutError: a reading's time is up.
        """
        steps: dict[str, Step] = {name: reading.next_step(now_s) for name, (_, reading) in self._readings.items()}
        reads = {name: step for name, step in steps.items() if isinstance(step, Read)}
        is_busy = len(reads) < len(steps)
        return Round(
            max((step.seconds for step in steps.values() if isinstance(step, Pause)), default=0.0),
            tuple(step.submission for step in steps.values() if isinstance(step, Send)),
            tuple(name for name, step in steps.items() if isinstance(step, Look)),
            {name: Position(step.num_tokens, step.with_head) for name, step in reads.items()},
            0 if is_busy else min(step.block_ms for step in reads.values()),
        )

    def got(self, asked: Round, chunks: Mapping[str, list[Chunk]], now_s: float) -> list[Chunk]:
        """Take what a round read; return what is new, with the number of its request."""
        pieces: list[Chunk] = []
        # Where one has something new, the silence of the others means nothing.
        for name in chunks or asked.reads:
            index, reading = self._readings[name]
            pieces += [replace(piece, index=index) for piece in reading.got(chunks.get(name, []), now_s)]
        return pieces

    def saw(self, request_id: str, state: str | None, now_s: float) -> None:
        """Take a request's state."""
        self._readings[request_id][1].saw(state, now_s)

    def sent(self) -> None:
        """Take that a submission went in."""
        for _, reading in self._readings.values():
            reading.sent()

    def failed(self, error: BrokerUnavailableError | OverloadedError, now_s: float) -> None:
        """Take that a round could not be done for now."""
        for _, reading in self._readings.values():
            reading.failed(error, now_s)

    def take_ended(self) -> list[tuple[int, Reading]]:
        """Let go of those that have ended; an error is in ``Reading.failure``."""
        ended = [(i, reading) for i, reading in self._readings.values() if reading.ended or reading.failure is not None]
        for _, reading in ended:
            del self._readings[reading.request_id]
        return ended
