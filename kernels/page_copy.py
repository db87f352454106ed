"""Moving pages of keys and values: ``cuda/page_copy.cu``."""

import functools
import math

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import require
from headrace.kernels.launch import Kernel, load

_WARP, _MOST_THREADS = 32, 128
# Vectors of a thread. Larger blocks have more on their way, and are slower for it.
_VECS = 2
_VECTOR_BYTES = 16


def copy_pages(pages: Tensor, moves: Tensor) -> None:
    """Copy pages in all layers by one launch.

    The copies have no order: no page may be a target twice, or both a source and a target.

    Args:
        pages: ``[num_layers, num_pages, …]`` of any dtype, each page contiguous and a multiple of 16 bytes; the first
            two strides are free, so that it may be a view of keys or of values.
        moves: int32 ``[num_moves, 2]``, from and to; an entry whose from is negative is passed over.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    require(moves, "moves", (moves.shape[0], 2), torch.int32, alignment=8)
    page_bytes = math.prod(pages.shape[2:]) * pages.element_size()
    strides = [stride * pages.element_size() for stride in pages.stride()[:2]]
    if not pages[0, 0].is_contiguous():
        raise KernelError("a page is not contiguous")
    if any(count % _VECTOR_BYTES for count in (page_bytes, *strides, pages.data_ptr())):
        raise KernelError(f"pages do not begin and end at multiples of {_VECTOR_BYTES} bytes")
    num_vecs = page_bytes // _VECTOR_BYTES
    threads = max(_WARP, min(_MOST_THREADS, -(-num_vecs // (_VECS * _WARP)) * _WARP))
    num_stretches = -(-num_vecs // (_VECS * threads))
    kernel = _kernel(pages.device, threads)
    for first in range(0, moves.shape[0], 65535):
        part = moves[first : first + 65535]
        grid = (num_stretches, part.shape[0], pages.shape[0])
        kernel(grid, (threads,), pages, part, *strides, num_vecs)


@functools.cache
def _kernel(device: torch.device, threads: int) -> Kernel:
    return load("page_copy", "page_copy", "PPqqi", device, THREADS=threads, VECS=_VECS)
