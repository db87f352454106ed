"""A checkpoint under one convention of names, and what of it nobody has read."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from headrace.workers.engine.checkpoint import Tensors

# The first checkpoints call a norm's weight gamma, and its bias beta.
_FIRST_NAMES = ((re.compile(r"(?<=LayerNorm\.)weight$"), "gamma"), (re.compile(r"(?<=LayerNorm\.)bias$"), "beta"))


class ReadTensors:
    """A checkpoint that remembers what was read.

    Args:
        tensors: the checkpoint.
    """

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._stored(name) in self._tensors

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Give one tensor.

        Raises:
            ModelError: there is no such tensor, or it has another shape.
        """
        stored = self._stored(name)
        self._read.add(stored)
        return self._tensors.tensor(stored, shape, dtype)

    def unread(self, names: Iterable[str]) -> list[str]:
        """Tell which of ``names`` nobody has read, in their order."""
        return sorted(set(names) - self._read)

    def _stored(self, name: str) -> str:
        if name in self._tensors:
            return name
        for pattern, first in _FIRST_NAMES:
            renamed = pattern.sub(first, name)
            if renamed != name and renamed in self._tensors:
                return renamed
        return name
