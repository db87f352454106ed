"""One request to an encoder in this worker's hands: it has one chunk, its last. No I/O."""

from collections.abc import Mapping
from typing import Any

from headrace.encoder_job import EncoderJob
from headrace.errors import DecodeError
from headrace.moves import ClaimedRow
from headrace.wire import Chunk, Done, Failure, Usage
from headrace.workers.courier.answering import Answering
from headrace.workers.courier.held_row import HeldRow


class EncoderRow(HeldRow):
    """Waits for its answer, and renews its lease until then."""

    def __init__(
        self, number: int, claimed: ClaimedRow, worker: str, work: tuple[EncoderJob, Answering] | None = None
    ) -> None:
        """Make a row; without ``work`` it is one that can only be ended, its job being unreadable."""
        job = work[0] if work else None
        super().__init__(number, claimed, worker, job.num_tokens if job else 0, job.cache_key if job else "")
        self._work = work
        self._usage = Usage(job.num_tokens if job else 0, 0)
        self._result: Mapping[str, Any] | None = None
        self._last: Chunk | None = None

    @property
    def has_news(self) -> bool:
        """There are no tokens to publish."""
        return False

    def answer(self, found: bytes) -> None:
        """Take what the engine has found of all texts; it ends the row."""
        if self.ended or self._work is None:
            return
        job, answering = self._work
        try:
            self._result = answering.result(job, found, self._claimed.encoding)
        except DecodeError as error:
            self.end("error", Failure("worker", str(error)))
        else:
            self.end("stop")

    def whole(self) -> Chunk | None:
        """The last chunk is all there is."""
        return self._last if self._last is not None and self._result is not None else None

    def _cut(self) -> Chunk:
        assert self._reason is not None, "there is nothing to say before the end"
        done = Done(self._reason, self._usage, self._failure, result=self._result)
        self._last = Chunk(self._num_tokens, self._num_chars, (), "", done)
        return self._last
