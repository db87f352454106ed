"""How ``cuda/prefill_ring.cu`` is specialised: prefill attention whose keys and values the copy engine brings.

Pure arithmetic: it knows no device and launches nothing.
"""

from dataclasses import dataclass

import torch

from headrace.kernels.build import C_TYPES, Macro
from headrace.kernels.prefill_shape import PrefillShape

_TEAM_ROWS, _BLOCK_KEYS, _ITEMS, _ITEM_BYTES = 64, 64, 4, 40


@dataclass(frozen=True, slots=True)
class Ring:
    """How a block computes, which has a multiprocessor for itself.

    Attributes:
        groups: of four warps; each has 64 pairs of a query token and a head of its group, and all read the same ring.
        stages: tiles of 64 keys and values that the ring has.
        held_steps: 16 numbers each of a query that stay in registers, the rest in shared memory.
        rotates: whether queries are rotated on their way, the first half of a head against the second.
    """

    groups: int
    stages: int
    held_steps: int
    rotates: bool = False

    @property
    def rows(self) -> int:
        """Pairs of an item of the plan."""
        return self.groups * _TEAM_ROWS

    @property
    def threads(self) -> int:
        """Of a block: four warps bring what the groups compute with."""
        return 128 * (self.groups + 1)

    def shared_bytes(self, dtype: torch.dtype, head_dim: int) -> int:
        """Dynamic shared memory of a block, as ``prefill_item.cuh`` divides it."""
        row_bytes = head_dim * dtype.itemsize
        queries = self.groups * _TEAM_ROWS * row_bytes * (1 if 16 * self.held_steps == head_dim else 2)
        barriers = 8 * (4 * self.stages + 2 * self.groups + 2 * _ITEMS)
        return 2 * self.stages * _BLOCK_KEYS * row_bytes + queries + barriers + _ITEMS * _ITEM_BYTES

    def num_items(self, group: int, num_chunks: int, num_tokens: int) -> int:
        """How many items a head of keys has at most, however tokens are cut into so many rows and padding."""
        return num_tokens * group // self.rows + num_chunks + 1

    def macros(self, dtype: torch.dtype, head_dim: int) -> dict[str, Macro]:
        """What ``prefill_ring.cu`` is compiled with."""
        return {
            "DTYPE": C_TYPES[dtype],
            "HEAD_DIM": head_dim,
            "GROUPS": self.groups,
            "STAGES": self.stages,
            "HELD_STEPS": self.held_steps,
            "ROTATES": int(self.rotates),
        }


#: For steps of many items, and for smaller ones. Each fills a multiprocessor's shared memory.
LARGE, SMALL = Ring(3, 4, 5), Ring(2, 6, 8)


def rings_for(shape: PrefillShape, arch: str) -> tuple[Ring, ...]:
    """Say which rings a model's steps may take; none: ``prefill_attention.cu`` computes them all."""
    if arch != "sm_90a" or shape.dtype == torch.float32 or shape.head_dim != 128:
        return ()
    return LARGE, SMALL


def choose_ring(shape: PrefillShape, num_tokens: int, num_chunks: int, num_sms: int) -> Ring | None:
    """Say which ring of ``rings_for`` is the fastest for a step; None: the other kernel.

    Args:
        shape: what is attended to.
        num_tokens: that attend.
        num_chunks: rows that they are in, at most.
        num_sms: the GPU's multiprocessors.
    """
    large, small = (-(-num_tokens * shape.group // ring.rows) for ring in (LARGE, SMALL))
    # Rows of few queries leave most of a block's groups without any. What is less than measured is left as it was:
    # 65 rows of 17 tokens, and 512 tokens of 8 heads of keys.
    if 2 * small < num_chunks or 3 * large * shape.num_kv_heads < 2 * num_sms:
        return None
    return LARGE if large >= num_chunks and large * shape.num_kv_heads >= 2 * num_sms else SMALL
