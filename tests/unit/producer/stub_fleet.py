"""A scheduler and a worker in one thread, made of the moves alone: tokens without a model, at a pace of choice."""

import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from headrace.broker import Broker
from headrace.entries import Entry
from headrace.errors import BrokerUnavailableError, InvalidRequestError
from headrace.keys import RequestStream, child_index
from headrace.moves import (
    Admission,
    AdmitCall,
    ClaimCall,
    ClaimedRow,
    DispatchCall,
    EmitCall,
    EmitRow,
    ReapCall,
    Verb,
    fence,
)
from headrace.request import Request
from headrace.wire import Chunk, Done, Echo, Encoding, Failure, TokenLogprobs, Usage, decode_body

PROMPT_TOKENS = 3
PROMPT_TEXT = "three little tokens"


def token(seed: int, index: int) -> int:
    """The index-th token of a seed's result."""
    return (seed + 7 * index) % 1000


def text_of(seed: int, num_tokens: int) -> str:
    """The text of a seed's first tokens."""
    return "".join(f"{token(seed, index)}é " for index in range(num_tokens))


@dataclass
class Row:
    """A request that the worker holds."""

    claimed: ClaimedRow
    seed: int
    num_wanted: int
    num_tokens: int = 0


@dataclass
class StubFleet:
    """Runs until the ``with`` ends; survives its broker.

    Attributes:
        broker: whose queue it serves.
        streams: which it reads.
        chunk_tokens: tokens of one chunk.
        step_s: pause between two rounds.
        until_token: rows wait behind this token, for a test to catch them there.
    """

    broker: Broker
    streams: tuple[RequestStream, ...] = (RequestStream("normal"),)
    chunk_tokens: int = 2
    step_s: float = 0.002
    until_token: int = 1 << 30
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._nonce = 0
        self._life = 0
        self._rows: dict[str, Row] = {}
        self._thread = threading.Thread(target=self._run, name="stub fleet", daemon=True)
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.wait(self.step_s):
                try:
                    self._round()
                except BrokerUnavailableError:
                    # What became of its claims is unknown: begin another life, as a restarted worker does.
                    self._rows.clear()
                    self._life += 1
                    self._nonce = 0
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it
            self._error = error

    def _round(self) -> None:
        settings = self.broker.settings
        for stream, entries in zip(self.streams, self.broker.oldest_requests(self.streams, 16), strict=True):
            if entries:
                admissions = [self._judge(entry) for entry in entries]
                self.broker.run(AdmitCall(stream, admissions, settings))
        ready = [request.request_id for request in self.broker.window(8).requests]
        if ready:
            self.broker.run(DispatchCall(ready, settings))
        self.broker.run(ReapCall(64, settings))
        self._nonce += 1
        worker = f"stub-{self._life}-{id(self)}"
        claimed = self.broker.run(ClaimCall(worker, self._nonce, 64, 1 << 30, 64, 1 << 30, 0, settings.lease_ms))
        for row in claimed.rows:
            seed, num_wanted = (int(part) for part in row.job.split())
            # Of several results each has a seed of its own: the next one.
            seed += child_index(row.request_id) or 0
            self._rows[row.request_id] = Row(row, seed, num_wanted, row.num_tokens)
        self._emit(worker)

    def _judge(self, entry: Entry) -> Admission:
        fields = entry.fields
        if b"cancel" in fields:
            return Admission(entry.id, fields[b"cancel"].decode(), True, "mp", b"", b"", 0, 0, 0, "", 60_000)
        encoding: Encoding = "mp" if b"mp" in fields else "json"
        name = fields[b"id"].decode()
        self.asked.append(name)
        refusal, job, request = b"", b"", None
        try:
            request = Request.parse(decode_body(fields[encoding.encode()], encoding))
            job = f"{request.seed or 0} {request.max_tokens or 8}".encode()
            if request.prompt == "too long":
                raise InvalidRequestError("prompt: has 9 tokens, at most 8 are allowed", field="prompt")
        except InvalidRequestError as error:
            refusal = Failure("invalid", str(error), error.field).encode(encoding)
        deadline_ms = request.deadline_ms or 0 if request else 0
        ttl_ms = request.ttl_ms or 60_000 if request else 60_000
        echo = Chunk(0, 0, (), "", echo=Echo((1, 2, 3), PROMPT_TEXT)).encode(encoding)
        return Admission(
            entry.id, name, False, encoding, refusal, job, 10, PROMPT_TOKENS, deadline_ms, "", ttl_ms,
            request.n if request else 1, echo if request and request.echo else b"",
        )  # fmt: skip

    def _emit(self, worker: str) -> None:
        rows = [self._next_chunk(worker, row) for row in self._rows.values()]
        if not rows:
            return
        refused = self.broker.run(EmitCall(rows, self.broker.settings)).refused
        for emitted in rows:
            row = self._rows[emitted.request_id]
            row.num_tokens = int(emitted.next.rpartition(":")[2])
            if emitted.request_id in refused or emitted.verb == "length":
                del self._rows[emitted.request_id]

    def _next_chunk(self, worker: str, row: Row) -> EmitRow:
        claimed, first = row.claimed, row.num_tokens
        end = max(first, min(first + self.chunk_tokens, row.num_wanted, self.until_token))
        before, after = text_of(row.seed, first), text_of(row.seed, end)
        prev, then = fence(worker, claimed.epoch, first), fence(worker, claimed.epoch, end)
        if end == first:
            return EmitRow(
                claimed.request_id, prev, prev, "", "renew", len(before), claimed.encoding, claimed.reply_to, b""
            )
        done = Done("length", Usage(PROMPT_TOKENS, end)) if end == row.num_wanted else None
        ids = tuple(token(row.seed, index) for index in range(first, end))
        logprobs = tuple(TokenLogprobs(-index / 8, ((ids[0], -0.5),)) for index in range(first, end))
        chunk = Chunk(first, len(before), ids, after[len(before) :], done, logprobs)
        verb: Verb = "length" if done else "chunk"
        return EmitRow(
            claimed.request_id, prev, then, f"{end}-0", verb, len(after), claimed.encoding, claimed.reply_to,
            chunk.encode(claimed.encoding),
        )  # fmt: skip
