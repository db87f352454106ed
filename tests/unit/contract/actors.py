"""A producer, a scheduler and workers reduced to their calls, for tests of the moves."""

from dataclasses import dataclass, field, replace
from typing import Any

from headrace.broker import Broker
from headrace.config import Settings
from headrace.keys import RequestStream
from headrace.moves import (
    Admission,
    AdmitCall,
    Admitted,
    BatchNote,
    CancelCall,
    ClaimCall,
    Claimed,
    ClaimedRow,
    DispatchCall,
    Dispatched,
    EmitCall,
    EmitRow,
    Emitted,
    ReapCall,
    Reaped,
    SubmitCall,
    Submitted,
    Verb,
    fence,
)
from headrace.wire import Chunk, Done, Encoding, Usage

NORMAL = RequestStream("normal")
PROMPT_TOKENS = 4
ANYBODY = BatchNote()


@dataclass
class Holding:
    """What a worker believes of a row that it holds."""

    claimed: ClaimedRow
    worker: str
    num_tokens: int = 0
    num_chars: int = 0

    def __post_init__(self) -> None:
        self.num_tokens, self.num_chars = self.claimed.num_tokens, self.claimed.num_chars

    def emit(self, verb: Verb, num_new: int = 0) -> EmitRow:
        """A row of a flush with ``num_new`` more tokens; ``written`` makes it the worker's belief."""
        request_id, epoch, n = self.claimed.request_id, self.claimed.epoch, self.num_tokens
        here, ids = fence(self.worker, epoch, n), tuple(range(n, n + num_new))
        common = {"request_id": request_id, "prev": here, "verb": verb, "encoding": self.claimed.encoding,
                  "reply_to": self.claimed.reply_to}  # fmt: skip
        if verb in ("renew", "yield", "lost"):
            return EmitRow(**common, next=here, entry="", num_chars=self.num_chars, chunk=b"")  # type: ignore[arg-type]
        done = None if verb == "chunk" else Done(verb, Usage(PROMPT_TOKENS, n + num_new))  # type: ignore[arg-type]
        chunk = Chunk(n, self.num_chars, ids, "".join(f"<{i}>" for i in ids), done)
        return EmitRow(
            **common,  # type: ignore[arg-type]
            next=fence(self.worker, epoch, n + num_new),
            entry=f"{n + num_new}-{0 if num_new else 2}",
            num_chars=self.num_chars + len(chunk.text),
            chunk=chunk.encode(self.claimed.encoding),
        )

    def written(self, row: EmitRow) -> None:
        """Take over what a flush has published."""
        self.num_tokens, self.num_chars = int(row.next.rpartition(":")[2]), row.num_chars


@dataclass
class Actors:
    """Everybody around one queue. Nothing is checked here: that is what tests do."""

    broker: Broker
    nonces: dict[str, int] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return self.broker.settings

    @property
    def client(self) -> Any:
        return self.broker.client

    def limit(self, **given: Any) -> None:
        """Change settings from here on."""
        self.broker.settings = self.broker.settings.model_copy(update=given)

    # Producers

    def submit(self, request_id: str, cost: int = 10, stream: RequestStream = NORMAL, **given: Any) -> Submitted:
        call = SubmitCall(request_id, stream, "json", b"{}", cost, 60_000, "", self.settings)
        return self.broker.run(replace(call, **given))

    def xadd(self, request_id: str, stream: RequestStream = NORMAL, entry: str = "*") -> str:
        """Enqueue without a script, as any program may."""
        fields = {"id": request_id, "json": "{}"}
        return str(self.client.xadd(self.broker.keys.requests(stream), fields, id=entry).decode())

    def xadd_cancel(self, request_id: str, stream: RequestStream = NORMAL) -> str:
        return str(self.client.xadd(self.broker.keys.requests(stream), {"cancel": request_id}).decode())

    def cancel(self, request_id: str) -> str:
        return self.broker.run(CancelCall(request_id, self.settings))

    # The scheduler

    def judged(self, stream: RequestStream = NORMAL, **given: Any) -> list[Admission]:
        """The stream's entries as a scheduler would judge them; ``given`` overrides fields of each."""
        admissions = []
        for entry in self.broker.oldest_requests([stream], 64)[0]:
            cancel = b"cancel" in entry.fields
            request_id = entry.fields[b"cancel" if cancel else b"id"].decode()
            encoding: Encoding = "mp" if b"mp" in entry.fields else "json"
            plain = Admission(entry.id, request_id, cancel, encoding, b"", b"job of " + request_id.encode(), 10,
                              PROMPT_TOKENS, 0, "", 60_000)  # fmt: skip
            admissions.append(replace(plain, **given))
        return admissions

    def admit(self, stream: RequestStream = NORMAL, **given: Any) -> list[Admitted]:
        return self.broker.run(AdmitCall(stream, self.judged(stream, **given), self.settings))

    def dispatch(self, *request_ids: str, note: BatchNote = ANYBODY) -> Dispatched:
        return self.broker.run(DispatchCall(request_ids, self.settings, note))

    def reap(self, limit: int = 256) -> Reaped:
        return self.broker.run(ReapCall(limit, self.settings))

    def queued(self, *request_ids: str, **given: Any) -> None:
        """Bring requests into ``ready``."""
        for request_id in request_ids:
            self.xadd(request_id)
        assert set(self.admit(**given)) <= {"queued"}

    def dispatched(self, *request_ids: str, **given: Any) -> str:
        """Bring requests into one batch."""
        self.queued(*request_ids, **given)
        batch = self.dispatch(*request_ids)
        assert batch.entry
        assert not batch.left
        return batch.entry

    # Workers

    def claim_call(self, worker: str, **given: Any) -> ClaimCall:
        """A new claim with room for anything."""
        self.nonces[worker] = self.nonces.get(worker, 0) + 1
        call = ClaimCall(worker, self.nonces[worker], 64, 10_000, 64, 10_000, 0, self.settings.lease_ms)
        return replace(call, **given)

    def claim(self, worker: str, **given: Any) -> Claimed:
        return self.broker.run(self.claim_call(worker, **given))

    def running(self, *request_ids: str, worker: str = "w1", **given: Any) -> list[Holding]:
        """Bring requests to a worker."""
        self.dispatched(*request_ids, **given)
        rows = self.claim(worker).rows
        assert [row.request_id for row in rows] == list(request_ids)
        return [Holding(row, worker) for row in rows]

    def emit(self, *rows: EmitRow) -> Emitted:
        return self.broker.run(EmitCall(rows, self.settings))

    def wrote(self, holding: Holding, verb: Verb, num_new: int = 0) -> EmitRow:
        """Emit one row and see that it was taken."""
        row = holding.emit(verb, num_new)
        assert self.emit(row).refused == frozenset()
        holding.written(row)
        return row

    # What there is

    def state(self, request_id: str) -> str:
        return self.broker.request_fields(request_id).get("state", "")

    def chunks(self, request_id: str) -> dict[str, Chunk]:
        """The result stream: entry's id -> chunk."""
        entries = self.client.xrange(self.broker.keys.out(request_id))
        return {entry.decode(): Chunk.decode(next(iter(fields.values()))) for entry, fields in entries}

    def last(self, request_id: str) -> Chunk:
        """The newest chunk."""
        return list(self.chunks(request_id).values())[-1]

    def due(self, request_id: str) -> float | None:
        found: float | None = self.client.zscore(self.broker.keys.due, request_id)
        return found

    def make_due(self, *request_ids: str) -> None:
        """Let the time come at which ``reap`` looks at requests, without waiting for it.

        A round of reap before keeps its clock, so that no amnesty comes in between.
        """
        self.no_amnesty()
        if request_ids:
            self.client.zadd(self.broker.keys.due, dict.fromkeys(request_ids, 1), xx=True)

    def no_amnesty(self) -> None:
        """As if a reaper had looked just now, and all along before."""
        self.client.hset(self.broker.keys.load, mapping={"reaped_at": self.broker.now_ms(), "amnesty_until": 0})
