"""One request in this worker's hands, whatever it asks for: its lease, its end, and what goes into a flush. No I/O."""

from abc import ABC, abstractmethod

from headrace.moves import ClaimedRow, EmitRow, Verb, fence
from headrace.wire import Chunk, Encoding, Failure, Reason


class HeldRow(ABC):
    """From its claim to its last chunk, one chunk in flight at a time.

    A chunk is sent again unchanged until it is acknowledged: re-cut chunks would lose or repeat tokens, since the
    server knows a chunk by where it begins and ends.

    Attributes:
        number: the row's name on the engine's channel.
        request_id: its name in Redis.
        cost_tokens: of the worker's memory, that it may come to need.
        deadline_ms: by the server's clock; 0 for none.
        proven: a token was published since the claim.
        computing: the engine still works on it.
        cache_key: under which its answer is kept; "" not at all.
    """

    def __init__(self, number: int, claimed: ClaimedRow, worker: str, cost_tokens: int, cache_key: str) -> None:
        self.number = number
        self.request_id = claimed.request_id
        self.cost_tokens = cost_tokens
        self.deadline_ms = claimed.deadline_ms
        self.proven = False
        self.computing = True
        self.cache_key = cache_key
        self._claimed = claimed
        self._worker = worker
        self._num_tokens = claimed.num_tokens
        self._num_chars = claimed.num_chars
        self._reason: Reason | None = None
        self._failure: Failure | None = None
        self._hand_back: Verb | None = None
        self._in_flight: EmitRow | None = None
        self._sent_s = 0.0

    @property
    @abstractmethod
    def has_news(self) -> bool:
        """There are tokens to publish."""

    @abstractmethod
    def whole(self) -> Chunk | None:
        """All of the answer in one chunk, for the response cache, once it has ended well; None where it is not kept."""

    @abstractmethod
    def _cut(self) -> Chunk:
        """The next chunk; with ``done`` where a reason is there."""

    @property
    def encoding(self) -> Encoding:
        """Of its chunks."""
        return self._claimed.encoding

    @property
    def ended(self) -> bool:
        """No more tokens are wanted."""
        return self._reason is not None or self._hand_back is not None

    @property
    def ripe(self) -> bool:
        """Something waits to be published."""
        return bool(self._in_flight or self.has_news or self.ended)

    @property
    def urgent(self) -> bool:
        """What waits is a first token, or the end: it does not wait for the next regular flush."""
        return self.ripe and (not self.proven or self.ended)

    def end(self, reason: Reason, failure: Failure | None = None) -> None:
        """No token follows."""
        self.computing = False
        if not self.ended:
            self._reason, self._failure = reason, failure

    def hand_back(self, verb: Verb) -> None:
        """Give the request to another worker once what is here is published (``yield`` or ``lost``)."""
        self.computing = False
        if not self.ended:
            self._hand_back = verb

    def next_emit(self, now_s: float, renew_after_s: float) -> EmitRow | None:
        """What to send in the flush at ``now_s``: the chunk in flight, the next one, a renewal, or nothing."""
        if self._in_flight is None:
            if self.has_news or self._reason is not None:
                self._in_flight = self._emit(self._cut())
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

    def _emit(self, chunk: Chunk) -> EmitRow:
        return EmitRow(
            request_id=self.request_id,
            prev=self._fence(self._num_tokens),
            next=self._fence(chunk.num_tokens_after),
            entry=f"{chunk.num_tokens_after}-{0 if chunk.ids else 2}",
            verb=self._reason or "chunk",  # type: ignore[arg-type]
            num_chars=chunk.o + len(chunk.text),
            encoding=self._claimed.encoding,
            reply_to=self._claimed.reply_to,
            chunk=chunk.encode(self._claimed.encoding),
        )

    def _bare(self, verb: Verb) -> EmitRow:
        at = self._fence(self._num_tokens)
        return EmitRow(self.request_id, at, at, "", verb, self._num_chars, self._claimed.encoding, "", b"")

    def _fence(self, num_tokens: int) -> str:
        return fence(self._worker, self._claimed.epoch, num_tokens)
