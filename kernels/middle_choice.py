"""How the middle product cuts its work up, and which products are its own.

Pure arithmetic; ``middle_product`` launches, ``cuda_products`` asks.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from headrace.kernels.thin_choice import FEW_TOKENS, MOST_BYTES, RESERVED_BYTES, Product

#: Rows of x that the kernel takes.
MOST_TOKENS = 128
#: Rows of x that four warps multiply, and columns of a step.
GROUP_TOKENS = 64
STEP_COLUMNS = 64
#: Rows of the weight that a block may have.
MOST_ROWS = 256
#: Stages of a ring that there are barriers for.
MOST_STAGES = 60

_BARRIER_BYTES = 1024
_ROW_BYTES = 2 * STEP_COLUMNS
_TENSOR_ROWS = 16  # of x that a warp has
_WARP = 32
_VECTOR_BYTES = 16
_RING_BYTES = 128 << 10
_FEWEST_STAGES = 4  # that keep memory busy, however large they are
_SMALL_WEIGHT_BYTES = 16 << 20
_MANY_ROWS = 1 << 16  # of the weight
# Weights with which so many tokens are enough, however few.
_FEW, _LEAST_FEW = ((6144, 4096), (4096, 4096)), 4

# Of an H200, for what has not been measured: bytes a microsecond from memory and into a multiprocessor, and the
# microseconds that a cluster's blocks take to add their sums up.
_MEMORY_RATE, _PROCESSOR_RATE, _MEETING_US = 4.35e6, 4.5e4, 0.8


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is cut up.

    Attributes:
        rows: of the weight that a block sums up at once: a multiple of 8.
        splits: blocks that share the columns: 1, 2, 4 or 8.
        stages: of the ring.
        alone: a multiprocessor holds no other block of such products at the same time, of this launch or the next.
    """

    rows: int
    splits: int
    stages: int
    alone: bool = True

    def num_tiles(self, product: Product) -> int:
        """Tiles of the weight's rows."""
        return -(-product.out_features // self.rows)

    def num_steps(self, product: Product) -> int:
        """Steps over the columns, a stage of the ring each."""
        return -(-product.in_features // STEP_COLUMNS)

    def shared_bytes(self, product: Product) -> int:
        """Shared memory of a block."""
        stage = stage_bytes(product, self.rows)
        own_eighths = -(-self.rows // (32 * self.splits)) * 4
        threads = -(-product.num_tokens // _TENSOR_ROWS) * _WARP
        sums = (self.splits - 1) * own_eighths * threads * _VECTOR_BYTES
        # What the tensor cores read as rows of x behind the last one.
        beyond = (num_groups(product) * GROUP_TOKENS - x_rows(product) - self.rows) * _ROW_BYTES
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


def stage_bytes(product: Product, rows: int) -> int:
    """Bytes of a stage of the ring."""
    return _ROW_BYTES * (rows + x_rows(product))


def takes(product: Product, *, gated: bool = False) -> bool:
    """Say whether the kernel can compute such a product at all."""
    return (
        1 <= product.num_tokens <= MOST_TOKENS
        and product.out_features % (16 if gated else 8) == 0
        and product.in_features % 8 == 0
    )


def is_best(product: Product, *, gated: bool = False) -> bool:
    """Say whether the kernel was measured to be the fastest, with what it joins and what may start early behind it."""
    if not takes(product, gated=gated):
        return False
    if product.num_tokens <= FEW_TOKENS:
        # Of a gate, and of longer or shorter rows, the thin product is as fast.
        return (product.out_features, product.in_features) in _FEW and product.num_tokens >= _LEAST_FEW
    if product.num_tokens <= 2 * FEW_TOKENS and max(product.out_features, product.in_features) <= 2048:
        return False  # the thin product's
    # With a head, cuBLAS is as fast.
    return num_groups(product) == 1 or product.out_features < _MANY_ROWS


@functools.cache
def choose(product: Product, num_sms: int) -> Tiling:
    """Choose how to cut a product up: as measured, else by an estimate of what limits each tiling.

    All numbers of tokens that as many groups of warps multiply have one form, that is one kernel.
    """
    for most_tokens, tiling in MEASURED.get((product.out_features, product.in_features), ()):
        if product.num_tokens <= most_tokens:
            return tiling
    most = replace(product, num_tokens=num_groups(product) * GROUP_TOKENS)
    usual = replace(product, num_tokens=most.num_tokens - GROUP_TOKENS // 2)
    best = min(tilings(most, num_sms), key=lambda tiling: estimate_us(tiling, usual, num_sms))
    return with_ring(best, product, _RING_BYTES)


def tilings(product: Product, num_sms: int) -> Iterator[Tiling]:
    """Tilings with and without shared columns, whose blocks are all at work at once, one a multiprocessor.

    Four blocks that share columns were never better for large weights: not all of their clusters find room at once.
    """
    # What is soon over lets blocks of the next launch begin beside its own.
    alone = 2 * product.out_features * product.in_features >= _SMALL_WEIGHT_BYTES
    rounds = -(-product.out_features // (num_sms * MOST_ROWS))
    rows = -(-product.out_features // (num_sms * rounds * 8)) * 8
    yield with_ring(Tiling(rows, 1, 2, alone), product, _RING_BYTES)
    # Blocks that share columns have one tile each.
    if product.out_features <= num_sms // 2 * MOST_ROWS:
        rows = -(-product.out_features // (num_sms // 2 * 8)) * 8
        split = with_ring(Tiling(rows, 2, 2, alone), product, _RING_BYTES)
        if split.fits(product):
            yield split


def with_ring(tiling: Tiling, product: Product, ring_bytes: int) -> Tiling:
    """Give a tiling a ring of so many bytes, or what its share of the columns takes if that is less."""
    stages = max(ring_bytes // stage_bytes(product, tiling.rows), _FEWEST_STAGES)
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


#: By the weight's shape ``(out_features, in_features)``: up to so many tokens, this tiling, as measured on an H200. The
#: fastest ones for each number of tokens make a step 2 % faster at most, but a weight has several kernels then.
MEASURED: dict[tuple[int, int], tuple[tuple[int, Tiling], ...]] = {
    (6144, 4096): (
        (16, Tiling(96, 2, 14)),
        (32, Tiling(96, 2, 12)),
        (64, Tiling(96, 2, 10)),
        (128, Tiling(96, 2, 5)),
    ),
    (4096, 4096): (
        (16, Tiling(64, 2, 15)),
        (32, Tiling(64, 2, 16)),
        (64, Tiling(64, 2, 12)),
        (128, Tiling(64, 2, 8)),
    ),
    (28672, 4096): (
        (16, Tiling(112, 1, 7)),
        (32, Tiling(112, 1, 6)),
        (64, Tiling(112, 1, 9)),
        (128, Tiling(224, 1, 4)),
    ),
    (4096, 14336): (
        (16, Tiling(64, 2, 20)),
        (32, Tiling(64, 2, 16)),
        (64, Tiling(64, 2, 12)),
        (128, Tiling(64, 2, 8)),
    ),
    (128256, 4096): (
        (16, Tiling(168, 1, 8, alone=False)),
        (32, Tiling(168, 1, 6, alone=False)),
        (64, Tiling(168, 1, 6, alone=False)),
    ),
    (4096, 1024): (
        (16, Tiling(32, 1, 18, alone=False)),
        (32, Tiling(32, 1, 14, alone=False)),
        (64, Tiling(32, 1, 9)),
        (128, Tiling(32, 1, 7)),
    ),
    (1024, 2048): (
        (16, Tiling(32, 4, 8, alone=False)),
        (32, Tiling(32, 4, 8, alone=False)),
        (64, Tiling(32, 4, 6, alone=False)),
        (128, Tiling(16, 2, 8)),
    ),
    (6144, 1024): (
        (16, Tiling(48, 1, 9)),
        (32, Tiling(48, 1, 7)),
        (64, Tiling(48, 1, 8)),
        (128, Tiling(48, 1, 6, alone=False)),
    ),
    (1024, 3072): (
        (16, Tiling(32, 4, 12, alone=False)),
        (32, Tiling(32, 4, 12, alone=False)),
        (64, Tiling(32, 4, 6, alone=False)),
        (128, Tiling(16, 2, 8, alone=False)),
    ),
    (151936, 1024): (
        (16, Tiling(128, 1, 6)),
        (32, Tiling(128, 1, 10, alone=False)),
        (64, Tiling(128, 1, 8, alone=False)),
    ),
}
