"""Plain torch for what devices know of rows: the oracle of ``row_state``, and what CPUs do."""

from torch import Tensor

from headrace.kernels.row_state import NextTokens


def change_words(words: Tensor, changes: Tensor) -> None:
    """Change single words: ``changes`` is int32 ``[num_changes, 2]``."""
    words[changes[:, 0].long()] = changes[:, 1]


def next_tokens(out: NextTokens, position: Tensor, last_token: Tensor, source: Tensor, decodes: Tensor) -> None:
    """Tell what every place computes next, and count it as computed; see ``row_state.next_tokens``."""
    num_places = len(out.token_ids)
    on, at = decodes[:num_places] > 0, position[:num_places]
    out.token_ids.copy_(last_token[source[:num_places].long()].where(on, 0))
    out.positions.copy_(at.where(on, -1))
    out.lengths.copy_((at + 1).where(on, 0))
    if out.places is not None:
        out.places.copy_(on.new_ones(num_places).cumsum(0).sub_(1).where(on, -1))
    at += on
