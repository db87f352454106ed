"""What ``decode_attention`` is specialised for: a model's heads and pages, and how a block reads them.

Pure arithmetic: it knows no device and launches nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headrace.errors import KernelError
from headrace.kernels.build import C_TYPES

HEAD_DIMS = (64, 80, 96, 128, 256)
MOST_GROUP = 16
TILE_KEYS = 16
MEETING_HEADS = 8  # as decode_settle.cuh has it
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
    def has_many_sums(self) -> bool:
        """Whether 16-bit numbers' sums take so many of a thread's registers that twelve warps do not fit."""
        return self.dtype.itemsize == 2 and -(-self.group // 8) * self.head_dim > 128

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
        stages: tiles of 16 keys and values that each warp has in flight; of one, keys and values are fetched apart,
            which ``run_fused`` does not do.
        least_tiles: a share is never smaller, so that few keys are not spread over blocks that only meet again.
        whole_tiles: rows of up to so many tiles are not cut if there is a block for each of their heads.
        least_blocks: on a multiprocessor; it limits a thread's registers.
    """

    warps: int
    stages: int
    least_tiles: int = 16
    whole_tiles: int = 32
    least_blocks: int = 1

    def shared_bytes(self, shape: DecodeShape, *, fused: bool = False) -> int:
        """Shared memory of a block, as ``decode_attention.cu`` divides it."""
        row_bytes = shape.head_dim * shape.dtype.itemsize
        tile = 2 * TILE_KEYS * (row_bytes if row_bytes % 128 == 0 else row_bytes + 16)
        meeting = 4 * (self.warps * min(shape.group, MEETING_HEADS) * (shape.head_dim + 4 + 2) + 1)
        # Queries in shared memory: decode_fragments.cuh says when.
        steps = -(-shape.group // 8) * shape.head_dim // 16
        private = 256 * steps if steps > 16 else 16
        if shape.dtype == torch.float32:
            private = 4 * shape.group * (shape.head_dim + TILE_KEYS)
        newest = (shape.group + 2) * (row_bytes + 16) if fused else 0
        return self.warps * (self.stages * tile + private) + -(-meeting // 16) * 16 + newest


def choose_ring(shape: DecodeShape, num_rows: int, shared_bytes: int, num_sms: int, *, fused: bool = False) -> Ring:
    """Prefer blocks to warps and warps to stages: one block's end of a row is another's middle.

    Two blocks are as many as registers allow where a thread has many sums; more than two stages win nothing there. Sums
    of more than eight heads take long to meet: if there is one (row, head of keys) a multiprocessor at most, one block
    of many warps makes fewer parts of rows.

    Args:
        shape: what is attended to.
        num_rows: of a step.
        shared_bytes: the most that a block may have; a multiprocessor has ``RESERVED_BYTES`` more.
        num_sms: multiprocessors.
        fused: for ``run_fused``, whatever is the fastest there (``choose_fused_ring``).

    Raises:
        KernelError: not even one warp's ring fits.
    """
    candidates = []
    is_large = shape.group > MEETING_HEADS
    if is_large and shape.has_many_sums and num_rows * shape.num_kv_heads <= num_sms:
        candidates.append((1, Ring(8, 2)))
    if not shape.has_many_sums:
        candidates += [(3, Ring(4, stages, least_blocks=3)) for stages in ((2,) if is_large else (4, 3, 2))]
    candidates += [(2, Ring(4, stages)) for stages in ((2,) if fused else (2, 1))]
    candidates += [(blocks, Ring(2, stages)) for blocks in (3, 2, 1) for stages in (4, 3, 2)]
    candidates += [(1, Ring(1, stages)) for stages in (4, 3, 2)]
    return _first_that_fits(candidates, shape, shared_bytes, fused=fused)


def plain_rings(shape: DecodeShape, shared_bytes: int, num_sms: int) -> set[Ring]:
    """All that ``choose_ring`` may choose, for any number of rows up to the shape's."""
    return {choose_ring(shape, rows, shared_bytes, num_sms) for rows in range(1, shape.max_rows + 1)}


def choose_fused_ring(shape: DecodeShape, num_rows: int, shared_bytes: int, num_sms: int) -> Ring | None:
    """Say how blocks read where one launch norms, rotates and attends; None: two launches are faster.

    One (row, head) a multiprocessor at most: its keys are all on their way at once, to many warps. From two on, several
    blocks of few warps share a multiprocessor; they all run at once or one launch is no faster.

    Args:
        shape: what is attended to.
        num_rows: of a step.
        shared_bytes: the most that a block may have; a multiprocessor has ``RESERVED_BYTES`` more.
        num_sms: multiprocessors.

    Raises:
        KernelError: not even one warp's ring fits.
    """
    items_an_sm = -(-num_rows * shape.num_kv_heads // num_sms)
    if items_an_sm == 1:
        candidates = [(1, Ring(warps, 2)) for warps in (8, 4, 2, 1)]
        return _first_that_fits(candidates, shape, shared_bytes, fused=True)
    several = Ring(2, 3, least_blocks=4)
    if 2 < items_an_sm <= several.least_blocks and _fits(
        several, several.least_blocks, shape, shared_bytes, fused=True
    ):
        return several
    return None


def fused_rings(shape: DecodeShape, shared_bytes: int, num_sms: int) -> set[Ring]:
    """All that ``choose_fused_ring`` may choose, for any number of rows up to the shape's."""
    chosen = {choose_fused_ring(shape, rows, shared_bytes, num_sms) for rows in range(1, shape.max_rows + 1)}
    return {ring for ring in chosen if ring is not None}


def _first_that_fits(
    candidates: Sequence[tuple[int, Ring]], shape: DecodeShape, shared_bytes: int, *, fused: bool
) -> Ring:
    for blocks, ring in candidates:
        if _fits(ring, blocks, shape, shared_bytes, fused=fused):
            return ring
    raise KernelError(f"{shape} does not fit {shared_bytes} bytes of shared memory")


def _fits(ring: Ring, blocks: int, shape: DecodeShape, shared_bytes: int, *, fused: bool) -> bool:
    each = ring.shared_bytes(shape, fused=fused) + RESERVED_BYTES
    return blocks * each <= shared_bytes + RESERVED_BYTES
