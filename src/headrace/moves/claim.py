"""``claim``: a worker takes the oldest batch that it can hold."""

from dataclasses import dataclass
from typing import Literal

from headrace.moves.call import Argument
from headrace.moves.reply import read_bytes
from headrace.wire import Encoding


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
        last, solo, batch, *flat = read_bytes(reply)
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
