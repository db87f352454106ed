"""One request in this worker's hands: from its claim to its last chunk. No I/O."""

from collections.abc import Iterable

from headrace.job import Job
from headrace.moves import ClaimedRow, EmitRow, Verb, fence
from headrace.wire import Chunk, Done, Failure, Reason, TokenLogprobs, Usage
from headrace.workers.text.detokenizer import Detokenizer


class Row:
    """Gathers tokens into chunks, one chunk in flight at a time.

    A chunk is sent again unchanged until it is acknowledged, and tokens that come meanwhile go into the next one:
    re-cut chunks would lose or repeat tokens, since the server knows a chunk by where it begins and ends.

    Attributes:
        number: the row's name on the engine's channel.
        request_id: its name in Redis.
        cost_tokens: key-value tokens it may come to need.
        deadline_ms: by the server's clock; 0 for none.
        proven: a token was published since the claim.
        computing: the engine still works on it.
    """

    def __init__(
        self, number: int, claimed: ClaimedRow, worker: str, work: tuple[Job, Detokenizer] | None = None
    ) -> None:
        """Make a row; without ``work`` it is one that can only be ended, its job being unreadable."""
        job: Job | None
        self._detokenizer: Detokenizer | None
        job, self._detokenizer = work or (None, None)
        self.number = number
        self.request_id = claimed.request_id
        self.cost_tokens = len(job.prompt_ids) + job.params.max_tokens if job else 0
        self.deadline_ms = claimed.deadline_ms
        self.proven = False
        self.computing = True
        self._claimed = claimed
        self._num_prompt_tokens = len(job.prompt_ids) if job else 0
        self._worker = worker
        self._num_tokens = claimed.num_tokens
        self._num_chars = claimed.num_chars
        self._ids: list[int] = []
        self._text: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self._cumulative_logprob = 0.0 if job and job.params.logprobs is not None else None
        self._reason: Reason | None = None
        self._failure: Failure | None = None
        self._hand_back: Verb | None = None
        self._in_flight: EmitRow | None = None
        self._sent_s = 0.0

    @property
    def ended(self) -> bool:
        """No more tokens are wanted."""
        return self._reason is not None or self._hand_back is not None

    @property
    def ripe(self) -> bool:
        """Something waits to be published."""
        return bool(self._in_flight or self._ids or self.ended)

    @property
    def urgent(self) -> bool:
        """What waits is a first token, or the end: it does not wait for the next regular flush."""
        return self.ripe and (not self.proven or self.ended)

    def count(self, logprobs: Iterable[TokenLogprobs]) -> None:
        """Add the logprobs of tokens to their sum, token by token, so that every worker comes to the same one."""
        if self._cumulative_logprob is not None:
            for token in logprobs:
                self._cumulative_logprob += token.logprob

    def push(self, token_id: int, logprobs: TokenLogprobs | None = None) -> None:
        """Take a token from the engine; a stop string in the text ends the row."""
        if self.ended or self._detokenizer is None:
            return
        self._ids.append(token_id)
        if logprobs is not None:
            self._logprobs.append(logprobs)
            self.count((logprobs,))
        delta = self._detokenizer.push(token_id)
        self._text.append(delta.text)
        if delta.stopped:
            self._reason = "stop"

    def end(self, reason: Reason, failure: Failure | None = None) -> None:
        """No token follows; text that was held back goes out with the last chunk."""
        self.computing = False
        if not self.ended:
            if self._detokenizer is not None:
                self._text.append(self._detokenizer.flush())
            self._reason, self._failure = reason, failure

    def hand_back(self, verb: Verb) -> None:
        """Give the request to another worker once what is here is published (``yield`` or ``lost``)."""
        self.computing = False
        if not self.ended:
            self._hand_back = verb

    def next_emit(self, now_s: float, renew_after_s: float) -> EmitRow | None:
        """What to send in the flush at ``now_s``: the chunk in flight, the next one, a renewal, or nothing."""
        if self._in_flight is None:
            if self._ids or self._reason is not None:
                self._in_flight = self._cut()
            elif self._hand_back is not None:
                self._in_flight = self._bare(self._hand_back)
            elif now_s - self._sent_s >= renew_after_s:
                self._in_flight = self._bare("renew")
        if self._in_flight is not None:
            self._sent_s = now_s
        return self._in_flight

    def acknowledge(self, emitted: EmitRow) -> bool:
        """The server has taken ``emitted``; return whether the request has left this worker."""
        self._in_flight = None
        if emitted.verb == "renew":
            return False
        if emitted.verb != "chunk":
            return True
        self._num_tokens = int(emitted.next.rpartition(":")[2])
        self._num_chars = emitted.num_chars
        self.proven = True
        return False

    def _cut(self) -> EmitRow:
        chunk = Chunk(
            self._num_tokens,
            self._num_chars,
            tuple(self._ids),
            "".join(self._text),
            self._done(),
            tuple(self._logprobs),
        )
        self._ids.clear()
        self._text.clear()
        self._logprobs.clear()
        entry = f"{chunk.num_tokens_after}-{0 if chunk.ids else 2}"
        claimed = self._claimed
        return EmitRow(
            request_id=self.request_id,
            prev=self._fence(self._num_tokens),
            next=self._fence(chunk.num_tokens_after),
            entry=entry,
            verb=self._reason or "chunk",  # type: ignore[arg-type]
            num_chars=chunk.o + len(chunk.text),
            encoding=claimed.encoding,
            reply_to=claimed.reply_to,
            chunk=chunk.encode(claimed.encoding),
        )

    def _done(self) -> Done | None:
        if self._reason is None:
            return None
        usage = Usage(self._num_prompt_tokens, self._num_tokens + len(self._ids))
        return Done(self._reason, usage, self._failure, self._cumulative_logprob)

    def _bare(self, verb: Verb) -> EmitRow:
        at = self._fence(self._num_tokens)
        return EmitRow(self.request_id, at, at, "", verb, self._num_chars, self._claimed.encoding, "", b"")

    def _fence(self, num_tokens: int) -> str:
        return fence(self._worker, self._claimed.epoch, num_tokens)
