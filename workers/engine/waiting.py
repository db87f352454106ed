"""Rows that wait for room, and who of them begins next. Pure.

A row that runs long and begins late runs on when all others have ended, in steps that are hardly cheaper; so the rows
that ask for most output should begin first. But nobody may be overtaken for ever: rows are sorted in groups. A group is
those that wait, in the order of arrival, when the group before it has begun; who comes later waits for the next one.
Hence a row is overtaken by no row that came after its group's first one began, however many arrive: it waits for those
who came before it, and for its own group.
"""

from collections import deque
from collections.abc import Iterator

from headrace.workers.engine.sequence import Sequence


class Waiting:
    """The rows of one courier that have not begun, or have given their memory back.

    Args:
        overtaking_rows: rows that may begin before one that came earlier: a group has one row more.
    """

    def __init__(self, overtaking_rows: int) -> None:
        self._group_rows = overtaking_rows + 1
        self._group: deque[Sequence] = deque()  # in the order in which they begin
        self._later: deque[Sequence] = deque()  # in the order of arrival

    def __len__(self) -> int:
        return len(self._group) + len(self._later)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._group
        yield from self._later

    def add(self, sequence: Sequence) -> None:
        """A row has come."""
        self._later.append(sequence)

    def put_first(self, sequence: Sequence) -> None:
        """A row that had begun gives way: nobody overtakes it until it has begun again."""
        self._group.appendleft(sequence)

    def first(self) -> Sequence:
        """Say who begins next; there must be somebody."""
        if not self._group:
            group = [self._later.popleft() for _ in range(min(len(self._later), self._group_rows))]
            self._group.extend(sorted(group, key=lambda sequence: -sequence.num_to_draw))
        return self._group[0]

    def begin(self) -> None:
        """Take the row away that ``first`` named."""
        self._group.popleft()

    def remove(self, rows: set[int]) -> None:
        """Forget rows by their numbers; unknown ones are no error."""
        gone = [sequence for sequence in self if sequence.row in rows]
        for sequence in gone:
            sequence.has_ended = True
        if gone:
            self._group = deque(sequence for sequence in self._group if not sequence.has_ended)
            self._later = deque(sequence for sequence in self._later if not sequence.has_ended)
