"""What ``decode_attention`` is specialised for: a model's heads and pages, and how a block reads them.

Pure arithmetic: it knows no device and launches nothing.
"""

from dataclasses import dataclass

import torch

from headrace.errors import KernelError
from headrace.kernels.build import C_TYPES

HEAD_DIMS = (64, 80, 96, 128, 256)
MOST_GROUP = 16
TILE_KEYS = 16
RESERVED_BYTES = 1024  # of shared memory, by CUDA, in each block


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """What all steps and layers of a model have in common.

    Attributes:
        num_kv_heads: heads of keys and of values.
        group: query heads that share one of them, 1 to 16.
        head_dim: 64, 80, 96, 128 or 256.
        dtype: of queries, keys, values and results.
        max_rows: rows that a step may bring.
        max_pages: width of the page table.
        page_size: tokens a page, a multiple of 16.
        window: keys that a row sees at its end, itself included; None: all.
        segment_tokens: if given, a multiple of 16: each row's keys are summed up in segments of so many tokens, which
            are put together in order, so that a row's result has the same bits whatever rows are beside it. None: the
            cuts depend on the batch, and no time is lost on segments.

    Raises:
        KernelError: the kernels do not support it.
    """

    num_kv_heads: int
    group: int
    head_dim: int
    dtype: torch.dtype
    max_rows: int
    max_pages: int
    page_size: int = 16
    window: int | None = None
    segment_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.head_dim not in HEAD_DIMS or not 1 <= self.group <= MOST_GROUP or self.dtype not in C_TYPES:
            raise KernelError(f"no decode attention for {self.group} heads of {self.head_dim}, {self.dtype}")
        if self.page_size < TILE_KEYS or self.page_size % TILE_KEYS:
            raise KernelError(f"a page holds a multiple of {TILE_KEYS} tokens, not {self.page_size}")
        if self.window is not None and self.window < 1:
            raise KernelError(f"a window of {self.window} keys")
        if self.segment_tokens is not None and (self.segment_tokens < 1 or self.segment_tokens % TILE_KEYS):
            raise KernelError(f"a segment is a multiple of {TILE_KEYS} tokens, not {self.segment_tokens}")
        if min(self.num_kv_heads, self.max_rows, self.max_pages) < 1:
            raise KernelError(f"nothing to attend to in {self}")

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return self.num_kv_heads * self.group

    @property
    def num_items(self) -> int:
        """Pairs of a row and a head of keys, at most."""
        return self.max_rows * self.num_kv_heads

    @property
    def segment_tiles(self) -> int:
        """Tiles of 16 keys a segment; 0: no segments."""
        return 0 if self.segment_tokens is None else self.segment_tokens // TILE_KEYS

    @property
    def slot_bytes(self) -> int:
        """One part of an item's sums: ``decode_attention.cu``'s SLOT."""
        return -(-self.group * (self.head_dim + 2) // 4) * 16

    def num_slots(self, num_shares: int) -> int:
        """How many parts may be unfinished at once: two a share, or every segment."""
        if self.segment_tokens is None:
            return 2 * num_shares
        return self.num_items * -(-self.max_pages * self.page_size // self.segment_tokens)


@dataclass(frozen=True, slots=True)
class Ring:
    """How a block reads.

    Attributes:
        warps: of a block.
        stages: tiles of 16 keys and values that each warp has in flight.
        least_tiles: a share is never smaller, so that few keys are not spread over blocks that only meet again.
    """

    warps: int
    stages: int
    least_tiles: int = 16

    def shared_bytes(self, shape: DecodeShape) -> int:
        """Shared memory of a block, as ``decode_attention.cu`` divides it."""
        row_bytes = shape.head_dim * shape.dtype.itemsize
        tile = 2 * TILE_KEYS * (row_bytes if row_bytes % 128 == 0 else row_bytes + 16)
        meeting = 4 * (self.warps * shape.group * (shape.head_dim + 4 + 2) + 1)
        # Queries in shared memory: decode_fragments.cuh says when.
        steps = -(-shape.group // 8) * shape.head_dim // 16
        private = 256 * steps if steps > 16 else 16
        if shape.dtype == torch.float32:
            private = 4 * shape.group * (shape.head_dim + TILE_KEYS)
        return self.warps * (self.stages * tile + private) + -(-meeting // 16) * 16


def choose_ring(shape: DecodeShape, shared_bytes: int) -> Ring:
    """Prefer blocks to warps and warps to stages: one block's end of a row is another's middle.

    Args:
        shape: what is attended to.
        shared_bytes: the most that a block may have; a multiprocessor has ``RESERVED_BYTES`` more.

    Raises:
        KernelError: not even one warp's ring fits.
    """
    for blocks, warps in ((3, 4), (2, 4), (3, 2), (2, 2), (1, 2), (1, 1)):
        for stages in (4, 3, 2):
            ring = Ring(warps, stages)
            if blocks * (ring.shared_bytes(shape) + RESERVED_BYTES) <= shared_bytes + RESERVED_BYTES:
                return ring
    raise KernelError(f"{shape} does not fit {shared_bytes} bytes of shared memory")
