"""The seven moves as Python sees them: their arguments and answers as dataclasses. No connection in here.

Every change of a queue's state is one of these Lua scripts (``lua/``), so that it happens whole or not at all. Each
``…Call`` below turns into the script's ARGV and its reply back into a dataclass; a broker sends it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, Protocol, TypeVar

from headrace.config import Settings
from headrace.errors import DecodeError, InvalidRequestError
from headrace.keys import ProcessKind, RequestStream
from headrace.wire import Encoding

Argument = bytes | str | int | float
Verb = Literal["chunk", "renew", "yield", "lost", "stop", "length", "expired", "error"]

#: Results or rows in one call: a script holds the server for its whole run (a row of ``admit`` costs it 30 us).
MAX_ADMIT_ENTRIES = 64
MAX_EMIT_ROWS = 256
#: When reap looks again at a request that waits in its stream, and takes back a batch that no worker took.
RECHECK_MS = 60_000

ReplyT = TypeVar("ReplyT", covariant=True)


class Call(Protocol[ReplyT]):
    """One call of a move: its script's name, its ARGV, and how to read what comes back."""

    @property
    def move(self) -> str:
        """Name of the Lua file."""
        ...

    def arguments(self) -> list[Argument]:
        """The script's ARGV."""
        ...

    def read(self, reply: object) -> ReplyT:
        """Make a dataclass of the script's reply."""
        ...


@cache
def source(move: str) -> str:
    """The Lua text of a move: its first line, which carries the flags, then the shared prelude, then the rest."""
    folder = files("headrace.lua")
    first, rest = folder.joinpath(f"{move}.lua").read_text().split("\n", 1)
    return f"{first}\n{folder.joinpath('prelude.lua').read_text()}\n{rest}"


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a submission: ``ok``, ``known`` (that id is here already), ``cancelled`` or ``overloaded``."""

    verdict: Literal["ok", "known", "cancelled", "overloaded"]
    detail: str


@dataclass(frozen=True, slots=True)
class SubmitCall:
    """A producer's request enters its stream.

    Attributes:
        request_id: its name, made by the producer.
        stream: lane and tenant.
        encoding: of the body.
        body: the encoded fields.
        cost_tokens: an estimate of prompt plus output, until the scheduler has counted.
        ttl_ms: life of the result.
        reply_to: name of a reply stream, or "".
        settings: backlog limits.
    """

    request_id: str
    stream: RequestStream
    encoding: Encoding
    body: bytes
    cost_tokens: int
    ttl_ms: int
    reply_to: str
    settings: Settings
    move: Literal["submit"] = "submit"

    def arguments(self) -> list[Argument]:
        """See ``lua/submit.lua``."""
        limits = self.settings
        stream = self.stream
        return [self.request_id, stream.suffix, stream.lane, self.encoding, self.body, self.cost_tokens,
                limits.max_queued_requests, limits.max_queued_tokens, self.ttl_ms, stream.tenant, self.reply_to,
                RECHECK_MS]  # fmt: skip

    def read(self, reply: object) -> Submitted:
        """Of ``{verdict, detail}``.

        Raises:
            InvalidRequestError: no scheduler of the queue serves the tenant.
        """
        verdict, detail = _texts(reply)
        if verdict == "unserved":
            raise InvalidRequestError(
                f"tenant: no scheduler of this queue serves {detail}", field="tenant", request_id=self.request_id
            )
        return Submitted(verdict, detail)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Admission:
    """One entry of a stream, judged.

    Attributes:
        entry: its id in the stream.
        request_id: of the request, or of the one to cancel.
        cancel: the entry withdraws a request instead of bringing one.
        encoding: of the request and of its result.
        refusal: the encoded error of an invalid request, else b"".
        job: the canonical job of a valid one, else b"". A valid one without a job expires: its deadline was over before
            it was tokenised.
        cost_tokens: prompt plus the most it may generate.
        prompt_tokens: of the prompt.
        deadline_ms: after the entry's own time; 0 for none.
        reply_to: name of a reply stream, or "".
        ttl_ms: life of the result.
        num_results: more than one become children, each a request of its own.
        echo: the encoded chunk that heads every result, else b"".
    """

    entry: str
    request_id: str
    cancel: bool
    encoding: Encoding
    refusal: bytes
    job: bytes
    cost_tokens: int
    prompt_tokens: int
    deadline_ms: int
    reply_to: str
    ttl_ms: int
    num_results: int = 1
    echo: bytes = b""


def admit_parts(admissions: Sequence[Admission]) -> Iterator[Sequence[Admission]]:
    """Cut a stream's entries into calls of ``admit`` of at most ``MAX_ADMIT_ENTRIES`` results, an entry at least."""
    begin = num_results = 0
    for end, admission in enumerate(admissions):
        num_results += admission.num_results
        if num_results > MAX_ADMIT_ENTRIES and end > begin:
            yield admissions[begin:end]
            begin, num_results = end, admission.num_results
    if begin < len(admissions):
        yield admissions[begin:]


Admitted = Literal["queued", "invalid", "overloaded", "expired", "cancelled", "duplicate", "gone"]


@dataclass(frozen=True, slots=True)
class AdmitCall:
    """A stream's oldest entries, in order, at most ``MAX_ADMIT_ENTRIES``."""

    stream: RequestStream
    admissions: Sequence[Admission]
    settings: Settings
    move: Literal["admit"] = "admit"

    def arguments(self) -> list[Argument]:
        """See ``lua/admit.lua``."""
        s, stream = self.settings, self.stream
        weight = s.tenants.get(stream.tenant, 1.0) * s.lane_weights.get(stream.lane, 1.0)
        arguments: list[Argument] = [
            stream.suffix, stream.lane, stream.tenant, weight,
            s.lane_offset_tokens.get(stream.lane, 0), s.max_queued_requests, s.max_queued_tokens, s.tombstone_ttl_ms,
        ]  # fmt: skip
        for a in self.admissions:
            arguments += (a.entry, "cancel" if a.cancel else "request", a.request_id, a.encoding, a.refusal, a.job,
                          a.cost_tokens, a.prompt_tokens, a.deadline_ms, a.reply_to, a.ttl_ms,
                          a.num_results, a.echo)  # fmt: skip
        return arguments

    def read(self, reply: object) -> list[Admitted]:
        """One verdict an entry."""
        return _texts(reply)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Dispatched:
    """What became of a batch.

    Attributes:
        entry: its id in ``batches``; "" if no request of it was ready any more.
        full: the workers' backlog is long enough; nothing changed.
        left: ids that are not in the batch.
    """

    entry: str
    full: bool
    left: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BatchNote:
    """What the scheduler writes on a batch.

    Attributes:
        worker_class: whose costs it was cut by, and who is to run it; "" for any.
        num_tokens: to prefill, without padding.
        longest: tokens of the longest prompt.
        predicted_ms: what the batch costs by that class's table.
    """

    worker_class: str = ""
    num_tokens: int = 0
    longest: int = 0
    predicted_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class DispatchCall:
    """Ready requests become one batch.

    Attributes:
        request_ids: of the batch.
        settings: backlog limits.
        note: what is written on it.
        hopeless: ready requests that cannot meet their deadlines any more: they end, without room for a batch, too.
    """

    request_ids: Sequence[str]
    settings: Settings
    note: BatchNote = BatchNote()
    hopeless: Sequence[str] = ()
    move: Literal["dispatch"] = "dispatch"

    def arguments(self) -> list[Argument]:
        """See ``lua/dispatch.lua``.

        A batch that only the workers of one class can hold comes back soon after the last of them has died.
        """
        s, note = self.settings, self.note
        recheck_ms = min(RECHECK_MS, 2 * s.lease_ms) if note.worker_class else RECHECK_MS
        predicted_ms = f"{note.predicted_ms:.3f}"
        return [s.max_backlog_batches, recheck_ms, note.worker_class, s.batch_log_entries,
                note.num_tokens, note.longest, predicted_ms, len(self.hopeless), *self.hopeless,
                *self.request_ids]  # fmt: skip

    def read(self, reply: object) -> Dispatched:
        """Of ``{entry, id, …}``."""
        entry, *left = _texts(reply)
        if entry == "full":
            return Dispatched("", True, tuple(self.request_ids))
        return Dispatched(entry, False, tuple(left))


@dataclass(frozen=True, slots=True)
class ReadyRequest:
    """An admitted request that waits for a batch.

    Attributes:
        request_id: its name.
        prompt_tokens: of its prompt.
        cost_tokens: prompt plus the most it may generate.
        num_tokens: published before; the next worker prefills them with the prompt.
        strikes: leases lost without a token.
        score: its place in the queue, in tokens of virtual time.
        deadline_ms: by the server's clock; 0 for none.
        submit_ms: when it came, by the server's clock.
    """

    request_id: str
    prompt_tokens: int
    cost_tokens: int
    num_tokens: int
    strikes: int
    score: float = 0.0
    deadline_ms: int = 0
    submit_ms: int = 0

    @property
    def length(self) -> int:
        """Tokens to prefill."""
        return self.prompt_tokens + self.num_tokens


@dataclass(frozen=True, slots=True)
class Window:
    """The front of what is ready.

    Attributes:
        now_ms: the server's clock.
        num_ready: how many are ready in all.
        running_tokens: what running requests may come to hold in workers' memory, prompt and output in full.
        requests: the first ones, in the order of their scores.
    """

    now_ms: int
    num_ready: int
    running_tokens: int
    requests: tuple[ReadyRequest, ...]


@dataclass(frozen=True, slots=True)
class WindowCall:
    """The first ``count`` ready requests. No move, but a script, because it takes one round trip."""

    count: int
    move: Literal["window"] = "window"

    def arguments(self) -> list[Argument]:
        """See ``lua/window.lua``."""
        return [self.count]

    def read(self, reply: object) -> Window:
        """Of ``{now_ms, ready, running_tokens, 8 a request}``."""
        flat: list[Any] = _bytes(reply)
        requests = tuple(
            ReadyRequest(request_id.decode(), int(prompt), int(cost), int(num_tokens), int(strikes), float(score),
                         int(deadline), int(submitted))
            for request_id, score, prompt, cost, num_tokens, strikes, deadline, submitted
            in zip(*(flat[3 + i :: 8] for i in range(8)), strict=True)
        )  # fmt: skip
        return Window(int(flat[0]), int(flat[1]), int(flat[2]), requests)


@dataclass(frozen=True, slots=True)
class ClaimedRow:
    """A request that this worker owns now.

    Attributes:
        request_id: its name.
        epoch: how often it has been claimed; a part of the fence.
        num_tokens: published before; the worker goes on behind them.
        num_chars: length of the text published before.
        encoding: of its chunks.
        job: its canonical job, encoded.
        deadline_ms: by the server's clock; 0 for none.
        reply_to: name of a reply stream, or "".
    """

    request_id: str
    epoch: int
    num_tokens: int
    num_chars: int
    encoding: Encoding
    job: bytes
    deadline_ms: int
    reply_to: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """A batch for this worker, or none.

    Attributes:
        last_entry: newest batch looked at; without rows, wait for one behind it or for room.
        solo: the batch is a suspect: claim nothing more until it has a token.
        rows: the requests, possibly none.
        batch: the entry of the batch that they came in; "" for none.
    """

    last_entry: str
    solo: bool
    rows: tuple[ClaimedRow, ...]
    batch: str = ""


@dataclass(frozen=True, slots=True)
class ClaimCall:
    """A worker asks for the next batch that fits.

    Attributes:
        worker: a name used for one life only.
        nonce: grows with every new claim; a repeated call keeps it.
        free_rows: room now.
        free_tokens: key-value room now.
        max_rows: room of the empty worker.
        max_tokens: key-value room of the empty worker.
        num_unproven: rows without a token since their claim.
        lease_ms: how long the worker may be silent.
        worker_class: workers of one class cost the same; see ``headrace.keys``.
        patience_ms: how long a batch waits for the living class that it was cut for.
    """

    worker: str
    nonce: int
    free_rows: int
    free_tokens: int
    max_rows: int
    max_tokens: int
    num_unproven: int
    lease_ms: int
    worker_class: str = ""
    patience_ms: int = 0
    move: Literal["claim"] = "claim"

    def arguments(self) -> list[Argument]:
        """See ``lua/claim.lua``."""
        return [self.worker, self.nonce, self.lease_ms, self.free_rows, self.free_tokens, self.max_rows,
                self.max_tokens, self.num_unproven, self.worker_class, self.patience_ms]  # fmt: skip

    def read(self, reply: object) -> Claimed:
        """Of ``{last, solo, batch, 8 a row}``."""
        last, solo, batch, *flat = _bytes(reply)
        rows = []
        for i in range(0, len(flat), 8):
            request_id, epoch, n, o, encoding, job, deadline_ms, reply_to = flat[i : i + 8]
            enc: Encoding = "mp" if encoding == b"mp" else "json"
            rows.append(
                ClaimedRow(
                    request_id.decode(), int(epoch), int(n), int(o), enc, job, int(deadline_ms), reply_to.decode()
                )
            )
        return Claimed(last.decode(), solo == b"1", tuple(rows), batch.decode())


def fence(worker: str, epoch: int, num_tokens: int) -> str:
    """The value of ``at``: who may write a request, and behind which token."""
    return f"{worker}:{epoch}:{num_tokens}"


@dataclass(frozen=True, slots=True)
class EmitRow:
    """One row of a flush.

    Attributes:
        request_id: its name.
        prev: the fence as it must be.
        next: the fence once the chunk is in; the same as ``prev`` where there is none.
        entry: the chunk's id in the result stream, "" where there is none.
        verb: what to do; a reason ends the request.
        num_chars: length of the text once the chunk is in.
        encoding: of the chunk.
        reply_to: name of a reply stream, or "".
        chunk: encoded, b"" where there is none.
    """

    request_id: str
    prev: str
    next: str
    entry: str
    verb: Verb
    num_chars: int
    encoding: Encoding
    reply_to: str
    chunk: bytes


@dataclass(frozen=True, slots=True)
class Emitted:
    """The server's answer to a flush.

    Attributes:
        now_ms: the server's clock.
        refused: ids that are not this worker's any more, in the state that it believed: drop them.
    """

    now_ms: int
    refused: frozenset[str]


@dataclass(frozen=True, slots=True)
class EmitCall:
    """A worker's flush: at most ``MAX_EMIT_ROWS`` rows, each id once."""

    rows: Sequence[EmitRow]
    settings: Settings
    move: Literal["emit"] = "emit"

    def arguments(self) -> list[Argument]:
        """See ``lua/emit.lua``."""
        arguments: list[Argument] = [self.settings.lease_ms, self.settings.max_strikes]
        for r in self.rows:
            arguments += (r.request_id, r.prev, r.next, r.entry, r.verb, r.num_chars, r.encoding, r.reply_to, r.chunk)
        return arguments

    def read(self, reply: object) -> Emitted:
        """Of ``{now_ms, id, at, …}``."""
        now_ms, *flat = _texts(reply)
        return Emitted(int(now_ms), frozenset(flat[::2]))


@dataclass(frozen=True, slots=True)
class CancelCall:
    """End a request now; the reply is the state it was in, or ``unknown``."""

    request_id: str
    settings: Settings
    move: Literal["cancel"] = "cancel"

    def arguments(self) -> list[Argument]:
        """See ``lua/cancel.lua``."""
        return [self.request_id, self.settings.tombstone_ttl_ms]

    def read(self, reply: object) -> str:
        """The state."""
        return _texts([reply])[0]


@dataclass(frozen=True, slots=True)
class Reaped:
    """What a round of ``reap`` found.

    Attributes:
        num_seen: requests that were due.
        num_requeued: back in ``ready``, their worker or their batch being gone.
        num_expired: past their deadline.
        num_dead: given up.
        amnesty: workers keep their leases for now, because nobody reaped for too long.
    """

    num_seen: int
    num_requeued: int
    num_expired: int
    num_dead: int
    amnesty: bool


@dataclass(frozen=True, slots=True)
class ReapCall:
    """Look at the requests whose time has come."""

    limit: int
    settings: Settings
    move: Literal["reap"] = "reap"

    def arguments(self) -> list[Argument]:
        """See ``lua/reap.lua``.

        A broker that is away for a third of a lease leaves every worker, which renews after a third, a third to spare.
        """
        s = self.settings
        return [self.limit, s.max_strikes, s.lease_ms, s.lease_ms // 3, RECHECK_MS]

    def read(self, reply: object) -> Reaped:
        """Of five counts."""
        if not isinstance(reply, list):
            raise DecodeError(f"reap answered {reply!r}")
        seen, requeued, expired, dead, amnesty = (int(count) for count in reply)
        return Reaped(seen, requeued, expired, dead, bool(amnesty))


@dataclass(frozen=True, slots=True)
class Beat:
    """What a worker hears back.

    Attributes:
        now_ms: the server's clock.
        measure_ms: when somebody last asked the worker's class to measure its costs again; 0 for never.
    """

    now_ms: int
    measure_ms: int


@dataclass(frozen=True, slots=True)
class HeartbeatCall:
    """A process's sign of life. No move, but a script as they are: a full server takes no plain write."""

    kind: ProcessKind
    name: str
    info: str
    life_ms: int
    worker_class: str = ""
    move: Literal["heartbeat"] = "heartbeat"

    def arguments(self) -> list[Argument]:
        """See ``lua/heartbeat.lua``."""
        return [self.kind, self.name, self.info, self.life_ms, self.worker_class]

    def read(self, reply: object) -> Beat:
        """Of ``{now_ms, measure_ms}``."""
        now_ms, measure_ms = _texts(reply)
        return Beat(int(now_ms), int(measure_ms))


def _bytes(reply: object) -> list[bytes]:
    if not isinstance(reply, list):
        raise DecodeError(f"a move answered {reply!r}")
    return reply


def _texts(reply: object) -> list[str]:
    return [item.decode() for item in _bytes(reply)]
