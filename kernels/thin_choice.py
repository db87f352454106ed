"""Which products of few tokens our own kernel computes, and how each is cut up: as measured on an H200.

Pure arithmetic; ``thin_product`` launches, ``cuda_products`` asks (docs/bench/thin_product.md has the figures).
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

#: Rows of x that the kernel takes, and up to which it is the choice for every shape measured.
MOST_TOKENS = 32
FEW_TOKENS = 8
#: Columns of one instruction of the tensor cores.
TOKEN_TILE = 8
#: Shared memory that a block may have on Hopper, and what CUDA takes of each.
MOST_BYTES = 227 << 10
RESERVED_BYTES = 1024

_PITCH_PAD_BYTES = 64
_BARRIER_BYTES = 512
_RUN = 256  # numbers of x that a warp norms together
_MOST_HELD = 16
_MOST_X_PIECES = 32
_PROCESSOR_BYTES = 228 << 10  # of shared memory
_TALL = 1 << 14  # rows of the weight
_WARP = 32
_DEALT_PART = 8  # of a block's tiles, one in so many is dealt


@dataclass(frozen=True, slots=True)
class Product:
    """Sizes of ``y = x W^T``.

    Attributes:
        num_tokens: rows of x.
        out_features: rows of the weight.
        in_features: columns of both.
    """

    num_tokens: int
    out_features: int
    in_features: int


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is cut up.

    Attributes:
        tile: rows of the weight that a block sums up at once: 8, 16 or 32.
        piece: columns that one stage of the ring holds.
        stages: of the ring.
        warps: that multiply; one more copies.
        x_in_shared: a block keeps all of x in shared memory; otherwise it fetches x piece by piece.
        blocks: most blocks on a multiprocessor.
        alone: a multiprocessor holds no more than ``blocks`` at a time, of one launch after another.
        dealt: the last tiles go to whichever block comes first, instead of less than a tile to each.
    """

    tile: int
    piece: int
    stages: int
    warps: int
    x_in_shared: bool
    blocks: int = 3
    alone: bool = False
    dealt: bool = False

    def whole_tiles(self, product: Product, num_blocks: int) -> int:
        """Tiles that each of so many blocks has for itself."""
        tiles = product.out_features // (num_blocks * self.tile)
        return tiles - -(-tiles // _DEALT_PART) if self.dealt else tiles

    def shared_bytes(self, product: Product) -> int:
        """Shared memory of a block.

        One that is to be alone asks for so much that no other fits beside it. Otherwise blocks of a launch that starts
        early crowd on the multiprocessors that are free first, while others stand idle.
        """
        num_tokens, in_features = product.num_tokens, product.in_features
        token_tiles = -(-num_tokens // TOKEN_TILE)
        scratch = 2 * self.warps * -(-self.tile // 16) * token_tiles * 512
        ring = self.stages * self.tile * (2 * self.piece + _PITCH_PAD_BYTES)
        x = num_tokens * x_pitch(in_features) if self.x_in_shared else 0
        needed = _BARRIER_BYTES + scratch + ring + x
        return max(needed, _PROCESSOR_BYTES // (self.blocks + 1) if self.alone else 0)

    def held_runs(self, product: Product) -> int:
        """Runs of a normed x that each warp holds at once, rounded up to a power of two."""
        runs = -(-min(product.num_tokens, TOKEN_TILE) * row_runs(product.in_features) // self.warps)
        return 1 << (runs - 1).bit_length()

    def can_norm(self, product: Product) -> bool:
        """Whether a block can norm such an x before it multiplies."""
        runs = row_runs(product.in_features)
        # Where a warp's runs do not come round again, it holds the norm's weight for each of them, too.
        most = _MOST_HELD if runs % self.warps == 0 or self.warps % runs == 0 else _MOST_HELD // 2
        return self.x_in_shared and self.held_runs(product) <= most and runs <= _WARP

    def can_wait_for_x(self, product: Product) -> bool:
        """Whether a block has a barrier for each piece of x that it keeps."""
        return not self.x_in_shared or product.in_features <= _MOST_X_PIECES * self.piece


def x_pitch(in_features: int) -> int:
    """Bytes from one row of x to the next in shared memory: 64 past a multiple of 128, so that banks differ."""
    return -(-2 * in_features // 128) * 128 + _PITCH_PAD_BYTES


def row_runs(in_features: int) -> int:
    """Runs of a row, as a normed x is cut."""
    return -(-in_features // _RUN)


@functools.cache
def choose(product: Product) -> Tiling:
    """Choose how to cut a product up."""
    for tiling in _tilings(product, normed=False):
        if tiling.can_wait_for_x(product) and tiling.shared_bytes(product) <= MOST_BYTES:
            return tiling
    # x does not fit beside the ring. Taller tiles fetch it less often, but leave room for few sums.
    return Tiling(32, 1024, 3, 8, False) if product.num_tokens <= TOKEN_TILE else Tiling(16, 1024, 2, 8, False)


@functools.cache
def choose_norming(product: Product) -> Tiling | None:
    """Choose how to cut a product up whose x is normed first; None where the norm is better a kernel of its own."""
    if product.num_tokens > FEW_TOKENS:
        return None
    for tiling in _tilings(product, normed=True):
        if tiling.can_norm(product) and tiling.shared_bytes(product) <= MOST_BYTES:
            return tiling
    return None


def _tilings(product: Product, *, normed: bool) -> Iterator[Tiling]:
    """Tilings from the fastest on; the first that fits is taken."""
    num_tokens, out_features, in_features = product.num_tokens, product.out_features, product.in_features
    if in_features <= 2048:
        yield from _tilings_of_short_rows(product, normed=normed)
    elif in_features < 4096:
        if num_tokens <= 4:
            yield Tiling(8, 3072, 1, 8, x_in_shared=True, blocks=2, alone=True)
        yield Tiling(16, 1024, 3, 8, x_in_shared=True)
    elif in_features <= 8192:
        if out_features > _TALL:
            yield Tiling(8, 1024, 5, 8, x_in_shared=True, blocks=1, alone=True, dealt=True)
        # Copies of 4 KB are the fastest; where x leaves them no room, more than 64 KB in flight slows memory down.
        yield Tiling(16, 2048, 3, 8, x_in_shared=True, blocks=1)
        yield Tiling(8, 1024, 4, 8, x_in_shared=True, blocks=1, alone=True, dealt=out_features > 4096)
    elif num_tokens == 1:
        yield Tiling(8, 1024, 6, 8, x_in_shared=False, blocks=1, alone=True, dealt=True)


def _tilings_of_short_rows(product: Product, *, normed: bool) -> Iterator[Tiling]:
    """A row is soon read: a kernel is its beginning and its end, and what hides them is a ring for all of its part."""
    num_tokens, out_features = product.num_tokens, product.out_features
    very_few, tall = num_tokens <= 4, out_features > _TALL
    if normed:
        # In one round of a ring, where that is not too little for many rows of x.
        if not tall and product.in_features <= 1024 and (very_few or out_features <= 4096):
            yield Tiling(16, 512, 2, 8, x_in_shared=True, blocks=2, alone=True)
        elif not tall and very_few:
            yield Tiling(32, 1024, 2, 8, x_in_shared=True, blocks=1, alone=True)
        # More rows of x before a tall product are better normed by a kernel of their own.
        if not tall or num_tokens <= 2:
            yield Tiling(16, 1024, 3, 8, x_in_shared=True, blocks=2, dealt=tall)
    elif out_features <= 2048:
        if very_few:
            yield Tiling(8, 2048, 2, 8, x_in_shared=True, blocks=1, alone=True)
        yield Tiling(16, 1024, 2, 8, x_in_shared=False)
    elif tall:
        yield Tiling(16, 512, 4, 4, x_in_shared=False, dealt=True)
    elif num_tokens > FEW_TOKENS:
        yield Tiling(16, 512, 3, 4, x_in_shared=True)
    elif out_features <= 4096:
        # A block for each tile, and its columns on their way at once; a block's own copy of x would come late.
        yield Tiling(16, 512, 2, 4, x_in_shared=False, alone=True)
    elif num_tokens <= 2:
        yield Tiling(32, 512, 2, 4, x_in_shared=False, blocks=2, alone=True)
    else:
        yield Tiling(16, 256, 2, 4, x_in_shared=False, alone=True)


def beats_cublas(product: Product) -> bool:
    """Say whether a thin product and what it joins were measured to be faster than cuBLAS and kernels beside it."""
    if product.num_tokens <= FEW_TOKENS:
        return True
    if product.num_tokens <= 2 * FEW_TOKENS:
        return product.in_features <= 8192
    return product.num_tokens <= MOST_TOKENS and product.out_features <= 2048 and product.in_features <= 2048
