"""What ``prefill_attention`` is specialised for: a model's heads, and how a block computes them.

Pure arithmetic: it knows no device and launches nothing.
"""

from dataclasses import dataclass, replace

import torch

from headrace.errors import KernelError
from headrace.kernels.build import C_TYPES, Macro
from headrace.kernels.decode_shape import HEAD_DIMS, RESERVED_BYTES

MOST_GROUP = 128
UNIT_KEYS = 16  # a page holds a multiple of these


@dataclass(frozen=True, slots=True)
class PrefillShape:
    """What all steps and layers of a model have in common.

    Attributes:
        num_kv_heads: heads of keys and of values.
        group: query heads that share one of them, 1 to 128.
        head_dim: 64, 80, 96, 128 or 256.
        dtype: of queries, keys, values and results.
        max_rows: rows that a step may bring.
        max_tokens: query tokens that a step may bring.
        page_size: tokens a page, a multiple of 16.

    Raises:
        KernelError: the kernels do not support it.
    """

    num_kv_heads: int
    group: int
    head_dim: int
    dtype: torch.dtype
    max_rows: int
    max_tokens: int
    page_size: int = 16

    def __post_init__(self) -> None:
        if self.head_dim not in HEAD_DIMS or not 1 <= self.group <= MOST_GROUP or self.dtype not in C_TYPES:
            raise KernelError(f"no prefill attention for {self.group} heads of {self.head_dim}, {self.dtype}")
        if self.page_size < UNIT_KEYS or self.page_size % UNIT_KEYS:
            raise KernelError(f"a page holds a multiple of {UNIT_KEYS} tokens, not {self.page_size}")
        if min(self.num_kv_heads, self.max_rows, self.max_tokens) < 1:
            raise KernelError(f"nothing to attend to in {self}")

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return self.num_kv_heads * self.group


@dataclass(frozen=True, slots=True)
class Block:
    """How a block computes.

    Attributes:
        rows: pairs of a query token and a head of its group.
        keys: of a tile; two tiles are in shared memory. Results depend on it, in their last bits.
        least_blocks: on a multiprocessor; it limits a thread's registers.
        warpgroups: whether Hopper's products of four warps are used: 16-bit numbers, 64 keys.
        rotates: whether queries are rotated on their way, the first half of a head against the second.
    """

    rows: int
    keys: int
    least_blocks: int = 2
    warpgroups: bool = False
    rotates: bool = False

    @property
    def warps(self) -> int:
        """Of a block."""
        return self.rows // 16 if self.warpgroups else 4

    @property
    def static_bytes(self) -> int:
        """Shared memory of ``prefill_tiles.cuh``'s Rows, rounded to where the rest may begin."""
        step = 1024 if self.warpgroups else 128
        return -(-(32 + 256 * self.warps) // step) * step

    def halved(self) -> "Block | None":
        """A block of half the rows, whose results have the same bits; None where warps cannot be given fewer."""
        rows = self.rows // 2
        return replace(self, rows=rows) if rows >= 64 else None

    def shared_bytes(self, dtype: torch.dtype, head_dim: int) -> int:
        """Dynamic shared memory of a block, as ``prefill_attention.cu`` divides it."""
        row_bytes = head_dim * dtype.itemsize
        pitch = row_bytes if self.warpgroups or row_bytes % 128 == 0 else row_bytes + 16
        parts = 4 * self.rows * (self.keys + 4) if dtype == torch.float32 else 0
        return (self.rows + 4 * self.keys) * pitch + parts

    def num_items(self, group: int, num_chunks: int, num_tokens: int) -> int:
        """How many blocks a head of keys has at most, however tokens are cut into so many rows and padding."""
        return num_tokens * group // self.rows + num_chunks + 1

    def macros(self, dtype: torch.dtype, head_dim: int) -> dict[str, Macro]:
        """What ``prefill_attention.cu`` is compiled with."""
        return {
            "DTYPE": C_TYPES[dtype],
            "IS_FP32": int(dtype == torch.float32),
            "HEAD_DIM": head_dim,
            "WARPS": self.warps,
            "WARPGROUPS": int(self.warpgroups),
            "ROW_TILES": self.rows // (16 * self.warps),
            "BLOCK_ROWS": self.rows,
            "BLOCK_KEYS": self.keys,
            "BLOCKS": self.least_blocks,
            "ROTATES": int(self.rotates),
        }


def choose_block(shape: PrefillShape, shared_bytes: int, arch: str) -> Block:
    """Prefer two blocks on a multiprocessor to long tiles: one computes products while the other weighs scores.

    Args:
        shape: what is attended to.
        shared_bytes: the most that a block may have.
        arch: what is compiled for.

    Raises:
        KernelError: not even the smallest block fits.
    """
    candidates = _candidates(shape, arch)
    for num_blocks in (2, 1):
        for block in candidates:
            each = block.shared_bytes(shape.dtype, shape.head_dim) + block.static_bytes + RESERVED_BYTES
            # A multiprocessor has as much as one block may have, and what is reserved for it.
            if num_blocks * each <= shared_bytes + RESERVED_BYTES:
                return block
    raise KernelError(f"{shape} does not fit {shared_bytes} bytes of shared memory")


def _candidates(shape: PrefillShape, arch: str) -> list[Block]:
    if shape.dtype == torch.float32:
        return [Block(64, 32), Block(32, 32)] if shape.head_dim <= 128 else [Block(32, 16), Block(16, 16)]
    if arch == "sm_90a" and shape.head_dim == 64:
        return [Block(64, 64, 5, warpgroups=True)]
    if arch == "sm_90a":
        # Tiles of heads of 256 leave room for one block; its threads have all registers for their sums.
        return [Block(128, 64, 2 if shape.head_dim <= 128 else 1, warpgroups=True)]
    # Sums of 32 rows of 256 numbers would not fit a warp's registers.
    rows = 128 if shape.head_dim <= 128 else 64
    # A warp copies a quarter of a tile, 16 bytes a lane: half tiles of heads of 80 and 96 do not divide.
    return [Block(rows, keys) for keys in (64, 32) if keys // 4 * shape.head_dim % 256 == 0]
