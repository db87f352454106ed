"""All rows of a worker, and what of them goes into the next flush. No I/O.

One flush is in flight at a time and carries every row that has something to say; what ripens meanwhile shares the next.
"""

from collections import Counter
from collections.abc import Sequence

from headrace.moves import MAX_EMIT_ROWS, EmitRow, Emitted
from headrace.workers.courier.held_row import HeldRow

#: Chunks of one call: an encoder's may be large, and a script holds the server for as long as it copies them.
_MAX_FLUSH_BYTES = 4 << 20


class Outbox:
    """The rows in this worker's hands, by their number on the engine's channel.

    Attributes:
        num_taken: rows that were ever in it.
        gone: rows that have left, by how: a reason, ``yield``, ``lost``, or ``refused`` by the server.
    """

    def __init__(self, renew_after_s: float) -> None:
        self._renew_after_s = renew_after_s
        self._rows: dict[int, HeldRow] = {}
        self._by_id: dict[str, HeldRow] = {}
        self.num_taken = 0
        self.gone: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> tuple[HeldRow, ...]:
        """Every row that has not left."""
        return tuple(self._rows.values())

    @property
    def num_unproven(self) -> int:
        """Rows without a published token since their claim."""
        return sum(not row.proven for row in self._rows.values())

    @property
    def kv_tokens(self) -> int:
        """Key-value memory that rows under computation may come to need, in tokens."""
        return sum(row.cost_tokens for row in self._rows.values() if row.computing)

    @property
    def num_computing(self) -> int:
        """Rows that the engine still works on."""
        return sum(row.computing for row in self._rows.values())

    @property
    def ripe(self) -> bool:
        """Some row has something to publish."""
        return any(row.ripe for row in self._rows.values())

    @property
    def urgent(self) -> bool:
        """Some row has something to publish that should not wait for the next regular flush."""
        return any(row.urgent for row in self._rows.values())

    def add(self, row: HeldRow) -> HeldRow | None:
        """Take a row in; return the row of an older claim of the same request, which is void now."""
        older = self._by_id.get(row.request_id)
        if older is not None:
            self._remove(older)
        self.num_taken += 1
        self._rows[row.number] = row
        self._by_id[row.request_id] = row
        return older

    def find(self, number: int) -> HeldRow | None:
        """The row of that number, unless it has left."""
        return self._rows.get(number)

    def is_computing(self, row: HeldRow) -> bool:
        """Whether the engine still works on a row that has not left."""
        return row.computing and self._rows.get(row.number) is row

    def next_flush(self, now_s: float) -> list[tuple[HeldRow, EmitRow]]:
        """Rows for one call of ``emit``; those that were silent longest come first."""
        flush: list[tuple[HeldRow, EmitRow]] = []
        num_bytes = 0
        for number in list(self._rows):
            row = self._rows[number]
            emit = row.next_emit(now_s, self._renew_after_s)
            if emit is not None:
                flush.append((row, emit))
                # To the back of the line, so that no row starves where more are ripe than one call holds.
                self._rows[number] = self._rows.pop(number)
                num_bytes += len(emit.chunk)
                if len(flush) == MAX_EMIT_ROWS or num_bytes >= _MAX_FLUSH_BYTES:
                    break
        return flush

    def settle(self, flush: Sequence[tuple[HeldRow, EmitRow]], answer: Emitted) -> list[HeldRow]:
        """Take the server's answer to a flush; return the rows that have left, those still computing among them."""
        gone: list[HeldRow] = []
        for row, emit in flush:
            left = emit.request_id in answer.refused or row.acknowledge(emit)
            if left and self._rows.get(row.number) is row:
                self._remove(row)
                gone.append(row)
                self.gone["refused" if emit.request_id in answer.refused else emit.verb] += 1
        return gone

    def _remove(self, row: HeldRow) -> None:
        del self._rows[row.number]
        del self._by_id[row.request_id]
