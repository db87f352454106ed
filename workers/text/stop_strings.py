"""Finding stop strings in a text that arrives in pieces.

One automaton a string (Knuth, Morris, Pratt 1977): its state is the length of the longest end of the text that begins
the string. So every character costs constant time, amortised, however it arrived; a full state is a hit; and the
largest state is exactly how much of the text may still turn out to be a stop string. What is found depends on the
text alone, not on how tokens cut it: the stop string that is complete first wins, the longest of them where two end
together.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Automaton:
    """One stop string, and for each length of a matched beginning the next shorter one that is also its end."""

    string: str
    fallback: tuple[int, ...]


class StopStrings:
    """The search of one text for any of several strings."""

    def __init__(self, strings: Sequence[str]) -> None:
        """Begin the search.

        Args:
            strings: what ends the text, none of them empty.

        Raises:
            ValueError: a string is empty.
        """
        if "" in strings:
            raise ValueError("a stop string is empty")
        self._automata = tuple(_Automaton(string, _fallback(string)) for string in strings)
        self._states = [0] * len(strings)

    @property
    def num_pending(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        return max(self._states, default=0)

    def find(self, text: str) -> tuple[int, int] | None:
        """Search the next part of the text.

        Returns:
            for the first stop string: the number of characters of ``text`` read until it was complete, and its
            length. None where none is complete yet.
        """
        states = self._states
        for num_read, character in enumerate(text, 1):
            longest = 0
            for index, automaton in enumerate(self._automata):
                string, fallback = automaton.string, automaton.fallback
                state = states[index]
                while state and string[state] != character:
                    state = fallback[state]
                if string[state] == character:
                    state += 1
                    if state == len(string):
                        longest = max(longest, state)
                states[index] = state
            if longest:
                return num_read, longest
        return None


def _fallback(string: str) -> tuple[int, ...]:
    """Return, for each length of a beginning of ``string``, the longest shorter beginning that also ends it."""
    table = [0, 0]
    for character in string[1:]:
        length = table[-1]
        while length and string[length] != character:
            length = table[length]
        table.append(length + 1 if string[length] == character else 0)
    return tuple(table)
