"""``emit``: a worker's flush. Publishes chunks, ends rows, renews leases, hands rows back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.config import Settings
from headrace.moves.call import Argument
from headrace.moves.reply import read_texts
from headrace.wire import Encoding

#: Rows in one call: a script holds the server for its whole run.
MAX_EMIT_ROWS = 256

Verb = Literal["chunk", "renew", "yield", "lost", "stop", "length", "expired", "error"]


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
        now_ms, *flat = read_texts(reply)
        return Emitted(int(now_ms), frozenset(flat[::2]))
