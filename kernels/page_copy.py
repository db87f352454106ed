"""Moving pages of keys and values, and the page tables that name them: ``cuda/page_copy.cu``."""

import functools
import math

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import require
from headrace.kernels.launch import Kernel, load

_THREADS = 256
_VECS = 4
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
    num_stretches = -(-num_vecs // (_VECS * _THREADS))
    kernel = _kernel(pages.device, "page_copy", "PPqqi")
    for first in range(0, moves.shape[0], 65535):
        part = moves[first : first + 65535]
        grid = (num_stretches, part.shape[0], pages.shape[0])
        kernel(grid, (_THREADS,), pages, part, *strides, num_vecs)


def renumber_pages(page_table: Tensor, new_numbers: Tensor) -> None:
    """Replace every page number in a page table, in place; negative entries, which name no page, stay.

    Args:
        page_table: int32 of any shape, contiguous.
        new_numbers: int32 ``[num_pages]``, what each page is called now.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    require(page_table, "page_table", page_table.shape, torch.int32, alignment=4)
    require(new_numbers, "new_numbers", (new_numbers.numel(),), torch.int32, alignment=4)
    count = page_table.numel()
    kernel = _kernel(page_table.device, "renumber", "PPq")
    kernel((-(-count // _THREADS),), (_THREADS,), page_table, new_numbers, count)


@functools.cache
def _kernel(device: torch.device, entry: str, params: str) -> Kernel:
    return load("page_copy", entry, params, device, THREADS=_THREADS, VECS=_VECS)
