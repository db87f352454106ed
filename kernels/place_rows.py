"""Rows placed among those of a wider matrix: ``cuda/place_rows.cu``."""

import functools
import math

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import element_type, integer_type, require
from headrace.kernels.device import open_device
from headrace.kernels.embedding import SEVERAL, tokens_a_thread
from headrace.kernels.launch import Kernel, load

_THREADS, _VECTOR_BYTES = 256, 16


def place_rows(rows: Tensor, indices: Tensor, out: Tensor) -> None:
    """Write rows over the first numbers of those rows of ``out`` that the indices name.

    Args:
        rows: fp32, fp16 or bf16 ``[num_rows, width]``, contiguous.
        indices: int32 or int64 ``[num_rows]``, each a row of ``out``; where two are equal, either's row is there.
        out: ``[num_out, at least width]``, rows contiguous; no part of ``rows``.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    num_rows, width = rows.shape
    require(rows, "rows", (num_rows, width), rows.dtype)
    require(indices, "indices", (num_rows,), indices.dtype, alignment=indices.element_size())
    if out.dim() != 2 or out.shape[1] < width or out.dtype != rows.dtype or out.stride(1) != 1:
        raise KernelError(f"out is {out.dtype} {tuple(out.shape)}, not {rows.dtype} at least {width} wide")
    # As many bytes at a time as all rows begin at multiples of.
    size = rows.element_size()
    num_bytes = math.gcd(_VECTOR_BYTES, width * size, out.stride(0) * size, out.data_ptr())
    vec = num_bytes // size
    num_vecs = width // vec
    types = element_type(rows, "rows"), integer_type(indices, "indices")
    stretches = -(-num_vecs // _THREADS)
    together = tokens_a_thread(num_rows, num_vecs, stretches, open_device(rows.get_device()).num_sms)
    kernel = _kernel(rows.get_device(), *types, vec, together)
    grid = (-(-num_rows // together), stretches)
    kernel(grid, (_THREADS,), out, rows, indices, num_rows, out.stride(0) // vec, num_vecs)


def prepare(rows: Tensor, indices: Tensor) -> None:
    """Compile, for rows and indices of such dtypes on their device, what launches take whose vectors are 16 bytes."""
    vec = _VECTOR_BYTES // rows.element_size()
    for together in (1, *SEVERAL):
        _kernel(rows.get_device(), element_type(rows, "rows"), integer_type(indices, "indices"), vec, together)


@functools.cache
def _kernel(index: int, element: str, integer: str, vec: int, together: int) -> Kernel:
    return load(
        "place_rows",
        "place_rows",
        "PPPqqi",
        torch.device("cuda", index),
        DTYPE=element,
        INDEX=integer,
        VEC=vec,
        THREADS=_THREADS,
        ROWS=together,
    )
