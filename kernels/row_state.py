"""Bringing what a device knows of rows up to date: ``cuda/row_state.cu``."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.checks import require
from headrace.kernels.launch import Kernel, load

_THREADS = 256


@dataclass(frozen=True, slots=True)
class NextTokens:
    """What every place computes in a step: the token drawn last, or nothing.

    Attributes:
        token_ids: int64 ``[num_places]``; 0 where a place does not decode.
        positions: int32 ``[num_places]``; -1 where it does not.
        lengths: int32 ``[num_places]``, context with this token; 0 where it does not.
        places: int64 ``[num_places]``, each place's own number; -1 where it does not. None: nobody asks.
    """

    token_ids: Tensor
    positions: Tensor
    lengths: Tensor
    places: Tensor | None = None

    @classmethod
    def empty(cls, num_places: int, device: torch.device | None = None) -> "NextTokens":
        """Make room."""

        def room(dtype: torch.dtype) -> Tensor:
            return torch.zeros(num_places, dtype=dtype, device=device)

        return cls(room(torch.int64), room(torch.int32), room(torch.int32), room(torch.int64))

    def __getitem__(self, places: slice) -> "NextTokens":
        """Those of some places."""
        own = None if self.places is None else self.places[places]
        return NextTokens(self.token_ids[places], self.positions[places], self.lengths[places], own)


def change_words(words: Tensor, changes: Tensor) -> None:
    """Change single words.

    Args:
        words: int32 ``[num_words]``.
        changes: int32 ``[num_changes, 2]``, which word and what it becomes; no word twice.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    require(words, "words", (words.numel(),), torch.int32, alignment=4)
    require(changes, "changes", (changes.shape[0], 2), torch.int32, alignment=8)
    kernel = _kernel(words.device, "change_words", "PPi")
    kernel((-(-changes.shape[0] // _THREADS),), (_THREADS,), words, changes, changes.shape[0])


def next_tokens(out: NextTokens, position: Tensor, last_token: Tensor, source: Tensor, decodes: Tensor) -> None:
    """Tell what every place computes next, and count it as computed.

    Args:
        out: where to, of the first places.
        position: int64 ``[max_places]``, tokens computed; one more from here on where a place decodes.
        last_token: int64 ``[max_places]``.
        source: int32 ``[max_places]``, in which place of ``last_token`` each place's token is.
        decodes: int32 ``[max_places]``, 1 where a place takes part in the step by its last token, else 0.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    (num_places,) = out.token_ids.shape
    require(out.token_ids, "token_ids", (num_places,), torch.int64, alignment=8)
    require(out.positions, "positions", (num_places,), torch.int32, alignment=4)
    require(out.lengths, "lengths", (num_places,), torch.int32, alignment=4)
    require(out.places, "places", (num_places,), torch.int64, alignment=8)
    require(position, "position", (max(num_places, position.numel()),), torch.int64, alignment=8)
    require(last_token, "last_token", position.shape, torch.int64, alignment=8)
    require(source, "source", position.shape, torch.int32, alignment=4)
    require(decodes, "decodes", position.shape, torch.int32, alignment=4)
    kernel = _kernel(position.device, "next_tokens", "PPPPPPPPi")
    kernel(
        (-(-num_places // _THREADS),),
        (_THREADS,),
        *(out.token_ids, out.positions, out.lengths, out.places),
        *(position, last_token, source, decodes, num_places),
    )


@functools.cache
def _kernel(device: torch.device, entry: str, params: str) -> Kernel:
    return load("row_state", entry, params, device, THREADS=_THREADS)
