"""Plain torch for what devices know of rows: the oracle of ``row_state``, and what CPUs do."""

from torch import Tensor


def change_words(words: Tensor, changes: Tensor) -> None:
    """Change single words: ``changes`` is int32 ``[num_changes, 2]``."""
    words[changes[:, 0].long()] = changes[:, 1]


def advance(position: Tensor, places: Tensor) -> None:
    """Count one more token as computed; no place is negative."""
    position[places] += 1
