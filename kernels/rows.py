"""How the rows of a reduction are spread over threads: one plan for norms and softmax. Pure arithmetic."""

import functools
from dataclasses import dataclass

_WARP = 32
_MAX_THREADS = 1024
# More vectors a thread would not fit the registers of 1,024 threads.
_MAX_VECS = 4
# What a multiprocessor runs at once.
_THREADS_A_SM = 2048
# Blocks a multiprocessor should have for the memory never to wait, by experience.
_WAVES = 4


@dataclass(frozen=True, slots=True)
class RowPlan:
    """A launch, in the kernels' macros (``cuda/norm.cuh``).

    Attributes:
        vec: elements of a vector.
        vecs: vectors of a thread; 0: the row does not fit in registers and is read once more per pass.
        rows: reduced together by a warp or a block.
        warp_a_row: a warp owns a row, or some of its lanes do, else a block.
        threads: of a block.
        even: every thread holds as many elements as any other, and there are a power of two of them.
        lanes: of a warp that share a row, a power of two.
    """

    vec: int
    vecs: int
    rows: int
    warp_a_row: bool
    threads: int
    even: bool = False
    lanes: int = _WARP

    def num_blocks(self, num_rows: int) -> int:
        """Blocks that ``num_rows`` rows need."""
        rows_a_block = self.rows * (self.threads // self.lanes if self.warp_a_row else 1)
        return -(-num_rows // rows_a_block)

    @property
    def macros(self) -> dict[str, int]:
        """What the sources are specialised by."""
        return {
            "VEC": self.vec,
            "VECS": self.vecs,
            "ROWS": self.rows,
            "WARP_A_ROW": int(self.warp_a_row),
            "THREADS": self.threads,
            "EVEN": int(self.even),
        } | ({} if self.lanes == _WARP else {"ROW_LANES": self.lanes})


def vector(width: int, element_bytes: int) -> int:
    """Elements that move together: as many as divide ``width``, at most 16 bytes."""
    vec = 16 // element_bytes
    while width % vec:
        vec //= 2
    return vec


@functools.cache
def plan_rows(
    width: int,
    num_rows: int,
    element_bytes: int,
    num_sms: int,
    max_vecs: int = _MAX_VECS,
    warp_vecs: int = 2,
    *,
    splits_warps: bool = False,
) -> RowPlan:
    """Choose a plan; many rows get fewer threads each, and short ones share a block's reductions.

    Args:
        width: elements of a row.
        num_rows: how many there are, rounded as the caller likes: it is a key of the cache.
        element_bytes: size of an element.
        num_sms: of the device.
        max_vecs: vectors that the kernel can hold in a thread.
        warp_vecs: of many rows, those that take no more vectors a lane belong to a warp.
        splits_warps: whether the kernel lets several short rows share a warp.
    """
    vec = vector(width, element_bytes)
    num_vecs = -(-width // vec)
    many = num_rows >= _WAVES * num_sms * 4
    if splits_warps and num_vecs <= _WARP // 2:
        lanes = _power(num_vecs, 1)
        threads = 256 if num_rows * lanes >= num_sms * _THREADS_A_SM else 128
        return RowPlan(vec, 1, 1, True, threads, num_vecs == lanes, lanes)
    if num_vecs <= _WARP:
        # Narrower vectors where they let more of the warp's lanes work.
        while vec > 1 and 2 * num_vecs <= _WARP:
            vec, num_vecs = vec // 2, 2 * num_vecs
        threads = 256 if many else 128 if num_rows >= _WAVES * num_sms else 32
        return RowPlan(vec, 1, 1, True, threads, num_vecs == _WARP)
    if many and num_vecs <= warp_vecs * _WARP:
        vecs = _power(num_vecs, _WARP)
        return RowPlan(vec, vecs, 1, True, 256 // vecs, num_vecs == vecs * _WARP)
    if num_vecs > _MAX_THREADS * max_vecs:
        return RowPlan(vec, 0, 1, False, _MAX_THREADS)
    vecs = min(max_vecs, _power(num_vecs, 256 if many else 512))
    threads = min(_MAX_THREADS, -(-num_vecs // (vecs * _WARP)) * _WARP)
    even = num_vecs == vecs * threads and threads & (threads - 1) == 0
    return RowPlan(vec, vecs, 2 if many and vecs == 1 else 1, False, threads, even)


def _power(count: int, threads: int) -> int:
    """The least power of two that many vectors a thread, for ``threads`` of them to hold ``count``."""
    vecs = 1
    while vecs * threads < count:
        vecs *= 2
    return vecs


def round_rows(num_rows: int) -> int:
    """Round up to a power of two: few plans, and few kernels, serve all batch sizes."""
    return 1 << max(0, num_rows - 1).bit_length()


@functools.cache
def divisor(number: int) -> tuple[int, int]:
    """Return factor and shift such that ``n // number == n * factor >> shift`` for all ``n`` below 2^31.

    A factor takes 32 bits (T. Granlund, P. L. Montgomery: Division by invariant integers using multiplication, 1994).
    """
    shift = 31 + (max(1, number) - 1).bit_length()
    return -(-(1 << shift) // max(1, number)), shift
