"""Sizes of batches that a GPU may capture, and those that no text has asked for yet. Pure."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from headrace.kernels.cuda_encoder_batch import MOST_PADDED_TOKENS, PaddedSize, padded_size
from headrace.kernels.encoder_graphs import WayCosts

#: Of the batches that schedulers cut where nothing else is set; larger ones have many texts a request.
_MOST_ROWS = 64


class Captures(Protocol):
    """What captures: ``headrace.workers.encoder.runtimes.DeviceRuntime``."""

    uses_graphs: bool

    @property
    def max_graphs(self) -> int:
        """Graphs that are kept."""
        ...

    @property
    def costs(self) -> dict[PaddedSize, WayCosts]:
        """Of each size that has been captured."""
        ...


def captured_sizes(max_tokens: int) -> list[list[int]]:
    """Lengths of the rows of a batch of every size that is captured, up to 64 rows; the smallest first.

    Args:
        max_tokens: of a row.
    """
    found: dict[PaddedSize, list[int]] = {}
    for num_rows in (1, 8, 9, _MOST_ROWS):
        for num_tokens in range(16, MOST_PADDED_TOKENS + 1, 16):
            size = padded_size(num_tokens, num_rows)
            if size is not None and num_rows <= num_tokens <= num_rows * max_tokens:
                found[size] = [(num_tokens + row) // num_rows for row in range(num_rows)]
    return sorted(found.values(), key=sum)


def sizes_ahead(runtime: Captures, max_tokens: int, batch_tokens: int) -> Iterator[Sequence[int]]:
    """Lengths of the rows of one batch after the other that would be the first of its size, while there is room.

    Args:
        runtime: asked anew for each, since texts may have come meanwhile: what they use is not given up for this.
        max_tokens: of a row.
        batch_tokens: of a batch.
    """
    if not runtime.uses_graphs:
        return
    for lengths in captured_sizes(max_tokens):
        captured = runtime.costs
        if len(captured) >= runtime.max_graphs or sum(lengths) > batch_tokens:
            return
        if padded_size(sum(lengths), len(lengths)) not in captured:
            yield lengths
