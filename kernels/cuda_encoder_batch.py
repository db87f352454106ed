"""A batch of rows to encode as the GPU wants it: in one piece of memory, its attention planned.

A small batch is padded behind its last token to one of few sizes (``PaddedSize``): a graph that was captured for the
size serves any such batch, however its tokens are cut into rows. Padding is in no row, and costs what the batch is
short of the next size, where padding each row to the longest would cost what rows differ by.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.kernels.encoder_attention import most_items, plan_items
from headrace.kernels.encoder_table import EncoderBatch

#: Tokens of the largest batch that is padded. Beyond, launches cost less than what they start.
MOST_PADDED_TOKENS = 16_384
_PADDED_ROWS = (8, 64, 512)
_FEW_ROWS = 2


@dataclass(frozen=True, slots=True)
class PaddedSize:
    """What a graph is captured for: so many tokens, in at most so many rows."""

    num_tokens: int
    num_rows: int

    @property
    def num_items(self) -> int:
        """Items of attention at most."""
        return most_items(self.num_rows, self.num_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class CudaEncoderBatch(EncoderBatch):
    """A batch in one piece of memory.

    Attributes:
        items: int32 ``[num_items, 4]``, of ``encoder_attention.plan_items``.
        image: uint8, all of the batch's numbers.
        padded: the size that ``image`` has been padded to; None: it is not padded.
    """

    items: Tensor
    image: Tensor
    padded: PaddedSize | None


@cache
def padded_size(num_tokens: int, num_rows: int) -> PaddedSize | None:
    """The size to which a batch is padded, by a sixteenth of its tokens at most from 256 on; None: it is too large."""
    rows = next((rows for rows in _PADDED_ROWS if num_rows <= rows), None)
    if rows is None or num_tokens > MOST_PADDED_TOKENS:
        return None
    step = max(16, 1 << max(0, (num_tokens - 1).bit_length() - 5))
    return PaddedSize(-(-num_tokens // step) * step, rows)


def pack_cuda(
    token_ids: Tensor, positions: Tensor, type_ids: Tensor | None, lengths: Sequence[int], device: torch.device
) -> CudaEncoderBatch:
    """Lay a batch out; arguments as for ``encoder_table.EncoderOperations.pack``.

    What is on the host travels by one copy; each operation of torch's costs the host more than it costs the GPU. (On a
    CPU all is the same, but for page-locked memory.)
    """
    padded = padded_size(token_ids.shape[0], len(lengths))
    plan = _plan_few if len(lengths) <= _FEW_ROWS else plan_items
    items = plan(tuple(lengths), None if padded is None else padded.num_items)
    layout = _Layout(
        num_tokens=token_ids.shape[0],
        num_rows=len(lengths),
        most_tokens=token_ids.shape[0] if padded is None else padded.num_tokens,
        most_rows=len(lengths) if padded is None else padded.num_rows,
        num_items=items.shape[0],
    )
    # Page-locked, or the host would wait for all kernels before.
    staged = torch.empty(layout.num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    numbers = staged.numpy()
    numbers.fill(0)
    layout.put(numbers, items, lengths)
    on_device = []
    for which, ids in enumerate((token_ids, positions, type_ids)):
        if ids is not None and ids.device.type == "cpu":
            layout.ids(numbers, which)[:] = ids.numpy()
        elif ids is not None:
            on_device.append((which, ids))
    image = staged.to(device, non_blocking=True)
    batch = layout.batch(image, tuple(lengths), padded, has_types=type_ids is not None)
    targets = (batch.token_ids, batch.positions, batch.type_ids)
    for which, ids in on_device:
        target = targets[which]
        assert target is not None, "there is room for what is given"
        target.copy_(ids)
    return batch


@lru_cache(maxsize=1024)
def _plan_few(lengths: tuple[int, ...], num_items: int | None) -> npt.NDArray[np.int32]:
    """``plan_items`` of few rows, whose lengths come again: planning takes the host as long as three launches."""
    items = plan_items(lengths, num_items)
    items.setflags(write=False)
    return items


def image_like(batch: CudaEncoderBatch) -> CudaEncoderBatch:
    """A copy of a padded batch, padding counted as its tokens: what a graph is captured with."""
    padded = batch.padded
    assert padded is not None, "only padded batches are captured"
    layout = _Layout(padded.num_tokens, padded.num_rows, padded.num_tokens, padded.num_rows, padded.num_items)
    return layout.batch(batch.image.clone(), (), padded, has_types=True)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a batch's numbers lie: ids, positions and types, of 64 bits, then items and starts, of 32.

    Attributes:
        num_tokens: of the batch.
        num_rows: of the batch.
        most_tokens: for which there is room.
        most_rows: for which there is room.
        num_items: for which there is room.
    """

    num_tokens: int
    num_rows: int
    most_tokens: int
    most_rows: int
    num_items: int

    @property
    def num_bytes(self) -> int:
        """Of all."""
        return 8 * 3 * self._ids_pitch + 4 * (4 * self.num_items + self._starts_room)

    @property
    def _ids_pitch(self) -> int:
        return self.most_tokens + self.most_tokens % 2  # vectors of 16 bytes

    @property
    def _starts_room(self) -> int:
        return -(-(self.most_rows + 1) // 4) * 4

    def ids(self, image: npt.NDArray[np.uint8], which: int) -> npt.NDArray[np.int64]:
        """Ids (0), positions (1) or types (2) of the batch's tokens."""
        begin = which * self._ids_pitch
        return image.view(np.int64)[begin : begin + self.num_tokens]

    def put(self, image: npt.NDArray[np.uint8], items: npt.NDArray[np.int32], lengths: Sequence[int]) -> None:
        """Write what follows from the lengths."""
        plan = image[8 * 3 * self._ids_pitch :].view(np.int32)
        plan[: items.size] = items.reshape(-1)
        starts = plan[items.size :]
        np.cumsum(lengths, out=starts[1 : 1 + len(lengths)])
        # Rows that are none begin and end where the last one ends.
        starts[1 + len(lengths) :] = self.num_tokens

    def batch(
        self, image: Tensor, lengths: tuple[int, ...], padded: PaddedSize | None, *, has_types: bool
    ) -> CudaEncoderBatch:
        """See the numbers as a batch."""
        spare, pitch = self._ids_pitch - self.num_tokens, 3 * self._ids_pitch
        wide = image.view(torch.int64)
        token_ids, _, positions, _, type_ids, _, plan = torch.split_with_sizes(
            wide, (*(self.num_tokens, spare) * 3, wide.shape[0] - pitch)
        )
        items, starts, _ = torch.split_with_sizes(
            plan.view(torch.int32),
            (4 * self.num_items, self.num_rows + 1, self._starts_room - self.num_rows - 1),
        )
        return CudaEncoderBatch(
            token_ids=token_ids,
            positions=positions,
            type_ids=type_ids if has_types else None,
            starts=starts,
            lengths=lengths,
            items=items.view(-1, 4),
            image=image,
            padded=padded,
        )
