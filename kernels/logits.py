"""How the kernels of sampling read rows of logits: by segments, groups and vectors; see ``cuda/shortlist.cuh``."""

from torch import Tensor

from headrace.errors import KernelError

SEGMENT, GROUPS_A_SEGMENT = 1024, 16
WARP, SCAN_WARPS, THREADS = 32, 4, 512
_OCTET, _BINS, _CAPACITY, _NOTE_FLOATS = 8, 2048, 2048, 10
# A few for each multiprocessor of the largest GPUs.
_SEARCH_BLOCKS = 528
# A block holds all groups' greatest in registers; this many a thread are enough for 1.5 million tokens.
_MOST_GROUPS_A_THREAD = 48


def num_segments(vocab_size: int) -> int:
    """Segments of a row."""
    return -(-vocab_size // SEGMENT)


def scan_grid(vocab_size: int, num_rows: int) -> tuple[int, int]:
    """Blocks of a kernel that reads all logits."""
    return -(-num_segments(vocab_size) // SCAN_WARPS), num_rows


def workspace_floats(num_rows: int, vocab_size: int) -> int:
    """Floats of scratch memory that a shortlist and a search of each row need; see ``Workspace`` there."""
    scanned = num_segments(vocab_size) * (2 + GROUPS_A_SEGMENT)
    searched = 2 * (num_segments(vocab_size) + _BINS + _CAPACITY) + _NOTE_FLOATS
    return num_rows * (scanned + searched)


def search_grid(vocab_size: int, num_rows: int) -> tuple[int, int]:
    """Blocks of a kernel that reads all logits into bins, which is done the faster the fewer they are."""
    return min(-(-vocab_size // (THREADS * _OCTET)), max(1, _SEARCH_BLOCKS // max(1, num_rows))), num_rows


def groups_a_thread(vocab_size: int) -> int:
    """Groups that each thread of a block holds.

    Raises:
        KernelError: they are too many.
    """
    groups = -(-num_segments(vocab_size) * GROUPS_A_SEGMENT // THREADS)
    if groups > _MOST_GROUPS_A_THREAD:
        raise KernelError(f"a vocabulary of {vocab_size} tokens is larger than sampling can take")
    return groups


def vector(logits: Tensor) -> int:
    """Elements that every row lets move together."""
    element_bytes = logits.element_size()
    vec = 16 // element_bytes
    while logits.stride(0) % vec or logits.data_ptr() % (vec * element_bytes):
        vec //= 2
    return vec


def require_rows(logits: Tensor) -> None:
    """Check that logits are ``[num_rows, vocab]`` with contiguous rows.

    Raises:
        KernelError: they are not.
    """
    if logits.dim() != 2 or logits.stride(1) != 1:
        raise KernelError("logits are not rows that are contiguous")
