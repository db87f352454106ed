"""What a step computes beside its own tokens: on a GPU a token of every place, whoever has it. Pure.

Rows have places there, and a step in which any row decodes computes one token of each place up to the last that is
taken. Those of empty places, and of rows that are still at their prompts, are nobody's, but take as long as others.
"""


class Places:
    """The places at the beginning of a step, and those that rows take in it: empty ones first.

    Args:
        rows: that have one.
        end: place behind the last of these, >= their number.

    Attributes:
        end: behind the last place that is taken.
    """

    def __init__(self, rows: set[int], end: int) -> None:
        self._rows = rows
        self.end = end

    def num_new(self, row: int) -> int:
        """Places that a row would add to those computed: 1, or 0 if it has one, or one is empty."""
        return int(row not in self._rows and len(self._rows) == self.end)

    def enter(self, row: int) -> None:
        """Give a row a place, if it has none."""
        self.end += self.num_new(row)
        self._rows.add(row)
