"""What somebody may have meant by a name that nobody knows. Pure."""

from collections.abc import Collection
from difflib import get_close_matches

_NUM_SHOWN = 3


def nearest(name: str, known: Collection[str]) -> str:
    """A hint for the end of a refusal, short however many names are known."""
    close = get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"of {len(known)} the nearest are {', '.join(get_close_matches(name, known, n=_NUM_SHOWN, cutoff=0))}"
