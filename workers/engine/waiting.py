"""Rows that wait for room, and who of them begins next. Pure.

A row that runs long and begins late runs on when all others have ended, in steps that are hardly cheaper; so the rows
that ask for most output should begin first. But nobody may be overtaken for ever: by no more rows than ``Waiting`` is
told, nor by more than wait. So where a few always wait, each waits for a few, and where hundreds have come at once, or
come one by one while the first of them begin, the longest half of them begins in order.

It is enough to watch the oldest. It came as number ``k``; all that came before it have left; hence when ``k + n`` have
left, ``n`` have overtaken it, and fewer any other.
"""

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush

from headrace.workers.engine.sequence import Sequence


class Waiting:
    """The rows of one courier that have not begun, or have given their memory back.

    Args:
        overtaking_rows: rows that may begin before one that came earlier, at most.
    """

    def __init__(self, overtaking_rows: int) -> None:
        self._overtaking_rows = overtaking_rows
        self._gave_way: deque[Sequence] = deque()  # in the order in which they begin again
        self._rows: dict[int, Sequence] = {}  # the others, by the number as which they came
        self._numbers: dict[int, int] = {}  # theirs, by row
        # A heap of them, and of some that left: tokens to draw, negated, and number.
        self._longest: list[tuple[int, int]] = []
        self._num_come = 0
        self._num_left = 0
        self._oldest = 0  # nobody who came earlier waits

    def __len__(self) -> int:
        return len(self._gave_way) + len(self._rows)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._gave_way
        yield from self._rows.values()

    def knows(self, row: int) -> bool:
        """Whether a row waits."""
        return row in self._numbers or any(sequence.row == row for sequence in self._gave_way)

    def add(self, sequence: Sequence) -> None:
        """A row has come."""
        self._rows[self._num_come] = sequence
        self._numbers[sequence.row] = self._num_come
        heappush(self._longest, (-sequence.num_to_draw, self._num_come))
        self._num_come += 1
        if len(self._longest) > 2 * len(self._rows) + 16:
            self._longest = sorted(entry for entry in self._longest if entry[1] in self._rows)

    def put_first(self, sequence: Sequence) -> None:
        """A row that had begun gives way: nobody overtakes it until it has begun again."""
        self._gave_way.appendleft(sequence)

    def first(self) -> Sequence:
        """Say who begins next; there must be somebody."""
        return self._gave_way[0] if self._gave_way else self._rows[self._next()]

    def begin(self) -> None:
        """Take the row away that ``first`` names."""
        if self._gave_way:
            self._gave_way.popleft()
        else:
            self._leave(self._next())

    def remove(self, rows: set[int]) -> None:
        """Forget rows by their numbers; unknown ones are no error."""
        for row in rows & self._numbers.keys():
            self._leave(self._numbers[row]).has_ended = True
        for sequence in self._gave_way:
            sequence.has_ended = sequence.row in rows
        self._gave_way = deque(sequence for sequence in self._gave_way if not sequence.has_ended)

    def _leave(self, number: int) -> Sequence:
        sequence = self._rows.pop(number)
        del self._numbers[sequence.row]
        self._num_left += 1
        return sequence

    def _next(self) -> int:
        while self._oldest not in self._rows:
            self._oldest += 1
        if self._num_left >= self._oldest + min(self._overtaking_rows, len(self._rows)):
            return self._oldest
        while self._longest[0][1] not in self._rows:
            heappop(self._longest)
        return self._longest[0][1]
