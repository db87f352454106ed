"""How rows that need no reduction are cut into stretches, one a block. Pure arithmetic."""

from dataclasses import dataclass

_WARP = 32
_MAX_THREADS, _FLAT_THREADS = 256, 128
_MOST_BLOCKS = 65535  # of a grid's second dimension


@dataclass(frozen=True, slots=True)
class Stretches:
    """A launch.

    Attributes:
        vecs: vectors of a thread.
        threads: of a block.
        num_stretches: blocks that share a row.
    """

    vecs: int
    threads: int
    num_stretches: int


def stretch(num_vecs: int, num_rows: int, num_sms: int) -> Stretches:
    """Cut rows of ``num_vecs`` vectors: two vectors a thread where there is much to do, one where there is little."""
    vecs = 2 if _is_much(num_vecs * num_rows, num_sms) and num_vecs >= 2 * _WARP else 1
    threads = min(_MAX_THREADS, -(-num_vecs // (vecs * _WARP)) * _WARP)
    return Stretches(vecs, threads, -(-num_vecs // (vecs * threads)))


def stretch_flat(num_vecs: int, num_sms: int) -> Stretches:
    """Cut what has no rows: of much, two vectors a thread in small blocks, which leave a multiprocessor one by one."""
    vecs, threads = (2, _FLAT_THREADS) if _is_much(num_vecs, num_sms) else (1, _MAX_THREADS)
    return Stretches(vecs, threads, -(-num_vecs // (vecs * threads)))


def _is_much(num_vecs: int, num_sms: int) -> bool:
    return num_vecs >= num_sms * 2048 * 4


def layers(num_blocks: int) -> tuple[int, int]:
    """Cut a number of blocks into a grid's second and third dimension; some blocks more may come of it."""
    num_layers = max(1, -(-num_blocks // _MOST_BLOCKS))
    return -(-num_blocks // num_layers), num_layers
