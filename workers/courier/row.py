"""One request for text in this worker's hands: tokens become text, text becomes chunks. No I/O."""

from headrace.job import Job
from headrace.moves import ClaimedRow
from headrace.wire import Chunk, Done, Failure, Reason, TokenLogprobs, Usage
from headrace.workers.courier.held_row import HeldRow
from headrace.workers.text.detokenizer import Detokenizer


class Row(HeldRow):
    """Gathers tokens into chunks; what comes while one is in flight goes into the next one."""

    def __init__(
        self, number: int, claimed: ClaimedRow, worker: str, work: tuple[Job, Detokenizer] | None = None
    ) -> None:
        """Make a row; without ``work`` it is one that can only be ended, its job being unreadable."""
        job: Job | None
        self._detokenizer: Detokenizer | None
        job, self._detokenizer = work or (None, None)
        cost_tokens = len(job.prompt_ids) + job.params.max_tokens if job else 0
        super().__init__(number, claimed, worker, cost_tokens, job.cache_key if job else "")
        self._num_prompt_tokens = len(job.prompt_ids) if job else 0
        self._ids: list[int] = []
        self._text: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self._cumulative_logprob = 0.0 if job and job.params.logprobs is not None else None
        self._chunks: list[Chunk] = []

    @property
    def has_news(self) -> bool:
        """There are tokens to publish."""
        return bool(self._ids)

    def resume(self, published: Chunk) -> None:
        """Take what another worker has published; logprobs token by token, so that all come to the same sum."""
        self._count(published.logprobs)
        self._keep(published)

    def push(self, token_id: int, logprobs: TokenLogprobs | None = None) -> None:
        """Take a token from the engine; a stop string in the text ends the row."""
        if self.ended or self._detokenizer is None:
            return
        self._ids.append(token_id)
        if logprobs is not None:
            self._logprobs.append(logprobs)
            self._count((logprobs,))
        delta = self._detokenizer.push(token_id)
        self._text.append(delta.text)
        if delta.stopped:
            self._reason = "stop"

    def end(self, reason: Reason, failure: Failure | None = None) -> None:
        """No token follows; text that was held back goes out with the last chunk."""
        if not self.ended and self._detokenizer is not None:
            self._text.append(self._detokenizer.flush())
        super().end(reason, failure)

    def whole(self) -> Chunk | None:
        """All of the answer in one chunk, where it is to be kept."""
        chunks = self._chunks
        if not chunks or chunks[-1].done is None or chunks[-1].done.reason not in ("stop", "length"):
            return None
        ids = tuple(token_id for chunk in chunks for token_id in chunk.ids)
        logprobs = tuple(token for chunk in chunks for token in chunk.logprobs)
        return Chunk(0, 0, ids, "".join(chunk.text for chunk in chunks), chunks[-1].done, logprobs)

    def _count(self, logprobs: tuple[TokenLogprobs, ...]) -> None:
        if self._cumulative_logprob is not None:
            for token in logprobs:
                self._cumulative_logprob += token.logprob

    def _keep(self, chunk: Chunk) -> None:
        if self.cache_key:
            self._chunks.append(chunk)

    def _cut(self) -> Chunk:
        ids, text, logprobs = tuple(self._ids), "".join(self._text), tuple(self._logprobs)
        chunk = Chunk(self._num_tokens, self._num_chars, ids, text, self._done(), logprobs)
        self._ids.clear()
        self._text.clear()
        self._logprobs.clear()
        self._keep(chunk)
        return chunk

    def _done(self) -> Done | None:
        if self._reason is None:
            return None
        usage = Usage(self._num_prompt_tokens, self._num_tokens + len(self._ids))
        return Done(self._reason, usage, self._failure, self._cumulative_logprob)
