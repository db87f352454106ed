"""Entries of streams, and where a reader of a result stands among them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.wire import Chunk


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a stream."""

    id: str
    fields: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Position:
    """Where a reader of a result stands.

    Attributes:
        num_tokens: tokens that it holds.
        with_head: it wants the head, too, where it holds none.
    """

    num_tokens: int
    with_head: bool = True

    @property
    def entry(self) -> str:
        """The entry of the stream behind which it reads on."""
        return f"{self.num_tokens}-{0 if self.with_head else 1}"


def stream_entries(reply: Iterable[tuple[bytes, Any]] | None) -> list[Entry]:
    """Entries of an XRANGE, those deleted meanwhile left out."""
    return [Entry(entry.decode(), fields) for entry, fields in reply or () if fields]


def decode_chunks(entries: Iterable[tuple[bytes, Any]]) -> list[Chunk]:
    """Chunks of a result's entries."""
    return [Chunk.decode(next(iter(fields.values()))) for _, fields in entries]
