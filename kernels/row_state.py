"""Bringing what a device knows of rows up to date: ``cuda/row_state.cu``."""

import functools

import torch
from torch import Tensor

from headrace.kernels.checks import require
from headrace.kernels.launch import Kernel, load

_THREADS = 256


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


def advance(position: Tensor, places: Tensor) -> None:
    """Count one more token as computed.

    Args:
        position: int64 ``[num_places]``.
        places: int64 ``[num_rows]``, each once; -1 is passed over.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    require(position, "position", position.shape, torch.int64, alignment=8)
    require(places, "places", (places.shape[0],), torch.int64, alignment=8)
    kernel = _kernel(position.device, "advance", "PPi")
    kernel((-(-places.shape[0] // _THREADS),), (_THREADS,), position, places, places.shape[0])


@functools.cache
def _kernel(device: torch.device, entry: str, params: str) -> Kernel:
    return load("row_state", entry, params, device, THREADS=_THREADS)
