"""How the middle product cuts its work up, and which products are its own.

Pure arithmetic; ``middle_product`` launches, ``cuda_products`` asks.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from headrace.kernels.thin_choice import FEW_TOKENS, MOST_BYTES, RESERVED_BYTES, Product

#: Rows of x that the kernel takes.
MOST_TOKENS = 128
#: Rows of x that four warps multiply, and columns of a panel.
GROUP_TOKENS = 64
PANEL_COLUMNS = 64
#: Rows of the weight that a block may have.
MOST_ROWS = 256
#: Blocks that may share columns: a cluster on any Hopper GPU.
MOST_SPLITS = 8
#: Stages of a ring that there are barriers for.
MOST_STAGES = 60

_BARRIER_BYTES = 1024
_PANEL_BYTES = 128  # a row's
_TENSOR_ROWS = 16  # of x that a warp has
_WARP = 32
_VECTOR_BYTES = 16
_RING_BYTES = 128 << 10
_MOST_STAGE_BYTES = 24 << 10
_GROUPED_PROCESSORS = 16  # multiprocessors of each group of a GPU that are always there

# Of an H200, for what has not been measured: bytes a microsecond from memory and into a multiprocessor, and the
# microseconds that a cluster's blocks take to add their sums up.
_MEMORY_RATE, _PROCESSOR_RATE, _MEETING_US = 4.35e6, 4.5e4, 0.8


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is cut up.

    Attributes:
        rows: of the weight that a block sums up at once: a multiple of 8.
        splits: blocks that share the columns: 1, 2, 4 or 8.
        panels: of 64 columns that a stage of the ring holds.
        stages: of the ring.
        alone: a multiprocessor holds no other block of such products at the same time, of this launch or the next.
        ahead: stages of the weight, behind those of the ring, that are brought into the second-level cache while a
            launch that has started early waits for x.
    """

    rows: int
    splits: int
    panels: int
    stages: int
    alone: bool = True
    ahead: int = 0

    def num_tiles(self, product: Product) -> int:
        """Tiles of the weight's rows."""
        return -(-product.out_features // self.rows)

    def num_steps(self, product: Product) -> int:
        """Steps over the columns, a stage of the ring each."""
        return -(-product.in_features // (PANEL_COLUMNS * self.panels))

    def shared_bytes(self, product: Product) -> int:
        """Shared memory of a block."""
        stage = stage_bytes(product.num_tokens, self.rows, self.panels)
        own_eighths = -(-self.rows // (32 * self.splits)) * 4
        threads = -(-product.num_tokens // _TENSOR_ROWS) * _WARP
        sums = (self.splits - 1) * own_eighths * threads * _VECTOR_BYTES
        # What the tensor cores read as rows of x behind the last one.
        beyond = (num_groups(product) * GROUP_TOKENS - x_rows(product) - self.panels * self.rows) * _PANEL_BYTES
        needed = _BARRIER_BYTES + self.stages * stage + max(sums, beyond)
        return max(needed, (MOST_BYTES + RESERVED_BYTES) // 2 if self.alone else 0)

    def blocks(self, product: Product) -> int:
        """Blocks that a multiprocessor has room for: one or two."""
        return min((MOST_BYTES + RESERVED_BYTES) // (self.shared_bytes(product) + RESERVED_BYTES), 2)

    def fits(self, product: Product) -> bool:
        """Whether the kernel can cut the product up so."""
        return (
            self.rows % 8 == 0
            and 0 < self.rows <= MOST_ROWS
            and self.splits in (1, 2, 4, 8)
            and self.splits <= self.num_steps(product)
            and 1 < self.stages <= MOST_STAGES
            and self.shared_bytes(product) <= MOST_BYTES
        )


def num_groups(product: Product) -> int:
    """Groups of four warps that multiply."""
    return -(-product.num_tokens // GROUP_TOKENS)


def x_rows(product: Product) -> int:
    """Rows of x in a stage: whole eights, as they are swizzled."""
    return -(-product.num_tokens // 8) * 8


def stage_bytes(num_tokens: int, rows: int, panels: int) -> int:
    """Bytes of a stage of the ring."""
    return panels * _PANEL_BYTES * (rows + -(-num_tokens // 8) * 8)


def takes(product: Product, *, gated: bool = False) -> bool:
    """Say whether the kernel can compute such a product at all."""
    return (
        1 <= product.num_tokens <= MOST_TOKENS
        and product.out_features % (16 if gated else 8) == 0
        and product.in_features % 8 == 0
    )


def is_best(product: Product, *, gated: bool = False) -> bool:
    """Say whether the kernel is the choice, with what it joins and what may start early behind it."""
    return product.num_tokens > FEW_TOKENS and takes(product, gated=gated)


@functools.cache
def choose(product: Product, num_sms: int) -> Tiling:
    """Choose how to cut a product up: as measured, else by an estimate of what limits each tiling.

    All numbers of tokens that as many groups of warps multiply have one form if it fits them all, that is one kernel.
    """
    for most_tokens, tiling in MEASURED.get((product.out_features, product.in_features), ()):
        if product.num_tokens <= most_tokens and tiling.fits(product):
            return tiling
    most = replace(product, num_tokens=num_groups(product) * GROUP_TOKENS)
    usual = replace(product, num_tokens=most.num_tokens - GROUP_TOKENS // 2)
    fitting = [tiling for tiling in tilings(usual, num_sms) if with_ring(tiling, most, _RING_BYTES).fits(most)]
    best = min(fitting, key=lambda tiling: estimate_us(tiling, usual, num_sms))
    return with_ring(best, product, _RING_BYTES)


def tilings(product: Product, num_sms: int) -> Iterator[Tiling]:
    """Tilings of 1 to 8 splits whose blocks are all at work at once, one a multiprocessor; at least one."""
    for splits in (1, 2, 4, 8):
        # A cluster lies within a group of multiprocessors.
        clusters = num_sms if splits == 1 else num_sms // _GROUPED_PROCESSORS * (_GROUPED_PROCESSORS // splits)
        rounds = -(-product.out_features // (max(clusters, 1) * MOST_ROWS))
        rows = -(-product.out_features // (max(clusters, 1) * rounds * 8)) * 8
        # Stages that are not too small, and the same ones for all numbers of tokens of a group of warps.
        panels = 2 if stage_bytes(num_groups(product) * GROUP_TOKENS, rows, 2) <= _MOST_STAGE_BYTES else 1
        tiling = with_ring(Tiling(rows, splits, panels, 2), product, _RING_BYTES)
        # Blocks that share columns have one tile each.
        if (splits == 1 or rounds == 1) and tiling.fits(product):
            yield tiling
    yield with_ring(Tiling(64, 1, 1, 2), product, _RING_BYTES)


def with_ring(tiling: Tiling, product: Product, ring_bytes: int) -> Tiling:
    """Give a tiling a ring of so many bytes, or what its share of the columns takes if that is less."""
    stages = ring_bytes // stage_bytes(product.num_tokens, tiling.rows, tiling.panels)
    needed = -(-tiling.num_steps(product) // tiling.splits) if tiling.splits > 1 else MOST_STAGES
    return replace(tiling, stages=max(min(stages, needed, MOST_STAGES), 2))


def estimate_us(tiling: Tiling, product: Product, num_sms: int) -> float:
    """Estimate how long a launch takes, in microseconds."""
    in_bytes = 2 * product.in_features
    rounds = -(-tiling.num_tiles(product) * tiling.splits // num_sms)
    block = rounds * (tiling.rows + product.num_tokens) * in_bytes / tiling.splits
    memory = product.out_features * in_bytes
    meeting = _MEETING_US if tiling.splits > 1 else 0
    return max(memory / _MEMORY_RATE, block / _PROCESSOR_RATE) + meeting


#: By the weight's shape ``(out_features, in_features)``: up to so many tokens, this tiling, as measured on an H200.
MEASURED: dict[tuple[int, int], tuple[tuple[int, Tiling], ...]] = {}
