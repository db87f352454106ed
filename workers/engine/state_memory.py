"""Tensors that stay, and that the host changes value by value: at once on a CPU, by one copy a step on a GPU."""

import math
from collections.abc import Mapping
from collections.abc import Sequence as Values

import numpy as np
import torch
from torch import Tensor

from headrace.kernels.row_state import change_words

#: Name of a tensor, its dtype and its shape.
Columns = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

_WORD_BYTES = 4
_NUMPY = {torch.int64: np.int64, torch.int32: np.int32, torch.float32: np.float32}
#: Changes that travel together: all of those that hundreds of new rows make, or the host waits for the steps at work.
_STAGED = 1 << 15


class StateMemory:
    """One block of memory, cut into tensors. On a GPU, changes wait in the host's memory until they are sent.

    Args:
        columns: of elements of 4 or 8 bytes; they begin as zeros.
        device: where they lie.

    Attributes:
        num_writes: values written so far.
    """

    def __init__(self, columns: Columns, device: torch.device | None = None) -> None:
        self.num_writes = 0
        self._first: dict[str, int] = {}
        self._flat: dict[str, Tensor] = {}
        self._shaped: dict[str, Tensor] = {}
        num_words = 0
        for name, (dtype, shape) in columns.items():
            self._first[name] = num_words
            num_words += -(-math.prod(shape) * dtype.itemsize // 8) * 2  # every tensor begins at 8 bytes
        self._words = torch.zeros(num_words, dtype=torch.int32, device=device)
        for name, (dtype, shape) in columns.items():
            words = self._words[self._first[name] :][: math.prod(shape) * dtype.itemsize // _WORD_BYTES]
            self._flat[name] = words.view(dtype)
            self._shaped[name] = self._flat[name].view(shape)
        self._pending: dict[int, int] = {}
        self._staging = _Staging(self._words.device) if self._words.is_cuda else None

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of a name."""
        return self._shaped[name]

    def write(self, name: str, first: int, values: Values[int] | Values[float]) -> None:
        """Change neighbouring elements.

        Args:
            name: of the tensor.
            first: index of the first of them, all dimensions of the tensor laid flat.
            values: what they become.
        """
        flat = self._flat[name]
        self.num_writes += len(values)
        if self._staging is None:
            flat[first : first + len(values)] = torch.tensor(values, dtype=flat.dtype)
            return
        words = np.array(values, dtype=_NUMPY[flat.dtype]).view(np.int32).tolist()
        begin = self._first[name] + first * (flat.dtype.itemsize // _WORD_BYTES)
        self._pending.update(zip(range(begin, begin + len(words)), words, strict=True))

    def send(self) -> None:
        """Make all changes, in the order of the current stream; the host waits for nothing but earlier ones."""
        if self._staging is None or not self._pending:
            return
        changes = torch.from_numpy(np.array(tuple(self._pending.items()), dtype=np.int32))
        self._pending.clear()
        for first in range(0, len(changes), _STAGED):
            change_words(self._words, self._staging.upload(changes[first : first + _STAGED]))


class _Staging:
    """Two turns of pinned memory: one is filled while the other may still be on its way."""

    def __init__(self, device: torch.device) -> None:
        self._pinned = torch.empty(2, _STAGED, 2, dtype=torch.int32, pin_memory=True)
        self._device = torch.empty(_STAGED, 2, dtype=torch.int32, device=device)
        self._gone = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0

    def upload(self, changes: Tensor) -> Tensor:
        """Copy changes to the device, int32 ``[num_changes, 2]``, at most ``_STAGED``."""
        pinned, gone = self._pinned[self._turn, : len(changes)], self._gone[self._turn]
        self._turn ^= 1
        gone.synchronize()
        pinned.copy_(changes)
        there = self._device[: len(changes)]
        there.copy_(pinned, non_blocking=True)
        gone.record()
        return there
