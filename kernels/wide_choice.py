"""How the wide product cuts its work up, and which products are its own: as measured on an H200.

Pure arithmetic; ``wide_product`` launches, ``cuda_products`` asks (docs/bench/wide_product.md has the figures).
"""

from dataclasses import dataclass, replace

from headrace.kernels.thin_choice import MOST_BYTES, Product

#: Of more tokens, only products that are gated were measured to be faster, and of so many at least.
MOST_TOKENS, MANY_TOKENS = 256, 1024
#: Rows of x that four warps multiply, and columns of a step.
GROUP_TOKENS = 64
STEP_COLUMNS = 64
#: Rows of the weight that a block may have.
MOST_ROWS = 256
#: Blocks of a cluster that every Hopper GPU runs.
MOST_CLUSTER = 8

_BARRIER_BYTES = 1024
_ROW_BYTES = 2 * STEP_COLUMNS
_EIGHT = 8  # rows that are swizzled together
_VECTOR_BYTES = 16
_PART_ROWS = 32
_WARP, _GROUP_THREADS = 32, 128
_NUM_SMS = 132  # of the H200
_LEAST_USED = 0.9  # of what rounds of clusters could compute; at 0.85 cuBLAS was faster


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is cut up.

    Attributes:
        rows: of the weight that a block sums up at once: a multiple of 8.
        groups: of four warps in a block, each of which multiplies 64 rows of x.
        token_blocks: blocks of a cluster that share the weight's rows and have other rows of x.
        splits: blocks of a cluster that share the columns.
        stages: of the ring.
        band: tiles of tokens of which all tiles of rows are computed before the next ones.
        overlaps: a tile is written while the next one is begun.
    """

    rows: int
    groups: int
    token_blocks: int
    splits: int
    stages: int
    band: int = 1
    overlaps: bool = False

    @property
    def cluster(self) -> int:
        """Blocks of a cluster."""
        return self.token_blocks * self.splits

    @property
    def tokens(self) -> int:
        """Rows of x that a block has."""
        return self.groups * GROUP_TOKENS

    @property
    def threads(self) -> int:
        """Threads of a block: those that multiply, and a warp that fills the ring, or four if registers are short."""
        return self.groups * _GROUP_THREADS + (_GROUP_THREADS if self.groups > 2 or self.overlaps else _WARP)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: the ring, whose memory other blocks' sums take in the end."""
        own_eighths = -(-self.rows // (32 * self.splits)) * 4
        sums = (self.splits - 1) * own_eighths * self.groups * _GROUP_THREADS * _VECTOR_BYTES
        return _BARRIER_BYTES + max(self.stages * _ROW_BYTES * (self.tokens + self.rows), sums)

    def macros(self, *, gated: bool) -> dict[str, int]:
        """What the source is specialised by, but for the type."""
        return {
            "TILE": self.rows,
            "GROUPS": self.groups,
            "TOKEN_BLOCKS": self.token_blocks,
            "SPLITS": self.splits,
            "GATED": int(gated),
            **({"OVERLAPS": 1} if self.overlaps else {}),
        }

    def x_rows(self, product: Product) -> int:
        """Rows of x that a block has at once: equal shares, in whole eights."""
        return -(-product.num_tokens // (self.num_token_tiles(product) * self.token_blocks * _EIGHT)) * _EIGHT

    def num_token_tiles(self, product: Product) -> int:
        """Tiles of tokens, each for all blocks of a cluster."""
        return -(-product.num_tokens // (self.token_blocks * self.tokens))

    def num_tiles(self, product: Product) -> int:
        """Tiles of the weight's rows."""
        return -(-product.out_features // self.rows)

    def num_steps(self, product: Product) -> int:
        """Steps over the columns, a stage of the ring each."""
        return -(-product.in_features // STEP_COLUMNS)

    def num_clusters(self, product: Product, num_sms: int) -> int:
        """Clusters of a launch: no more than find room at once, if one may have several tiles."""
        tiles = self.num_tiles(product) * self.num_token_tiles(product)
        return min(tiles, max(num_sms // self.cluster, 1)) if self.splits == 1 else tiles

    def used(self, product: Product) -> float:
        """Share of what an H200's clusters could compute in as many rounds that is asked for."""
        clusters = self.num_clusters(product, _NUM_SMS)
        rounds = -(-self.num_tiles(product) * self.num_token_tiles(product) // clusters)
        tile = self.rows * self.token_blocks * self.tokens
        return product.out_features * product.num_tokens / (rounds * clusters * tile)

    def fits(self, product: Product) -> bool:
        """Whether the kernel can cut the product up so."""
        return (
            self.rows % (_EIGHT * self.token_blocks) == 0
            and self.groups in (1, 2, 3)
            and 0 < self.rows <= MOST_ROWS
            and (self.splits == 1 or self.num_token_tiles(product) == 1)
            and 1 <= self.cluster <= MOST_CLUSTER
            and self.splits <= self.num_steps(product)
            and (not self.overlaps or self._overlaps(product))
            and self.stages > 1
            and self.shared_bytes <= MOST_BYTES
        )

    def _overlaps(self, product: Product) -> bool:
        """Whether the kernel can write a tile behind the next one's first steps, 32 rows behind each."""
        parts = self.rows // _PART_ROWS
        return (self.groups, self.splits) == (2, 1) and not self.rows % _PART_ROWS and parts < self.num_steps(product)


def takes(product: Product, *, gated: bool = False) -> bool:
    """Say whether the kernel can compute such a product at all."""
    return product.out_features % (16 if gated else 8) == 0 and product.in_features % 8 == 0


def choose(product: Product) -> Tiling | None:
    """Say how to cut a product up that the kernel was measured to be the fastest for; None: others are faster."""
    for least, most, tiling in MEASURED.get((product.out_features, product.in_features), ()):
        if least <= product.num_tokens <= most:
            return tiling
    many = MANY.get((product.out_features, product.in_features), ())
    taken = [tiling for least, tiling in many if product.num_tokens >= least]
    return taken[-1] if taken and taken[-1].used(product) >= _LEAST_USED else None


#: By the weight's shape ``(out_features, in_features)``: from so many tokens to so many, this tiling.
MEASURED: dict[tuple[int, int], tuple[tuple[int, int, Tiling], ...]] = {
    (6144, 4096): (
        (161, 192, Tiling(96, 3, 1, 2, 6)),
        (193, 256, Tiling(96, 2, 2, 1, 8)),
    ),
    (4096, 4096): (
        (145, 192, Tiling(64, 3, 1, 2, 7)),
        (193, 256, Tiling(64, 2, 2, 1, 9)),
    ),
    (28672, 4096): (
        (161, 192, Tiling(224, 3, 1, 1, 4)),
        (225, 256, Tiling(224, 2, 2, 1, 5, overlaps=True)),
    ),
    (4096, 14336): (
        (161, 192, Tiling(64, 3, 1, 2, 7)),
        (225, 256, Tiling(144, 2, 2, 2, 6)),
    ),
    (4096, 1024): ((193, 256, Tiling(64, 2, 2, 1, 9)),),
    (1024, 2048): ((129, 256, Tiling(48, 2, 2, 2, 10)),),
    (6144, 1024): (
        (129, 192, Tiling(48, 3, 1, 1, 7)),
        (193, 256, Tiling(96, 2, 2, 1, 5)),
    ),
    (1024, 3072): ((129, 256, Tiling(48, 2, 2, 2, 10)),),
}

_GATES = Tiling(256, 2, 2, 1, 4, band=8)
_MANY_GATES = ((MANY_TOKENS, _GATES), (4096, replace(_GATES, overlaps=True)))

#: By the shape of a weight of gates and ups: from so many tokens on, this tiling.
MANY: dict[tuple[int, int], tuple[tuple[int, Tiling], ...]] = {
    (28672, 4096): _MANY_GATES,
    (6144, 1024): _MANY_GATES,
}
