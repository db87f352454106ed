"""What the bulk copy engine is told of a matrix, so that it copies boxes of it by their coordinates: tensor maps.

The driver encodes them; a kernel gets one by value (letter T in ``launch``) and reads it in ``cuda/tensor_copy.cuh``.

[1] CUDA driver API, section "Tensor Map Object Management".
"""

import ctypes
import functools

import torch
from torch import Tensor

from headrace.errors import KernelError

#: Bytes of an encoded map.
MAP_BYTES = 128
#: Columns of a box: 128 bytes, which the copy engine swizzles as Hopper's products want them.
BOX_COLUMNS = 64
#: Rows that a box may have.
MOST_BOX_ROWS = 256

_ALIGNMENT = 64  # of what the driver encodes into
_TYPES = {torch.float16: 6, torch.bfloat16: 9}
_NOT_INTERLEAVED, _SWIZZLE_128_BYTES, _FETCH_256_BYTES, _ZEROS_BEYOND = 0, 3, 3, 0


def tensor_map(x: Tensor, box_rows: int) -> bytes:
    """Encode a map of ``x [rows, columns]`` for boxes ``[box_rows, BOX_COLUMNS]``.

    Args:
        x: bf16 or fp16 on a GPU; rows contiguous, and multiples of 16 bytes apart and from address 0. The map holds its
            address and does not keep it alive.
        box_rows: 1 to ``MOST_BOX_ROWS``.

    Raises:
        KernelError: the driver refused.
    """
    if x.dim() != 2 or x.stride(1) != 1 or x.dtype not in _TYPES:
        raise KernelError(f"a tensor map wants rows of bf16 or fp16, not {tuple(x.shape)} of {x.dtype}")
    rows, columns = x.shape
    return rows_map(x.data_ptr(), rows, columns, x.stride(0) * x.element_size(), x.dtype, box_rows)


def rows_map(address: int, rows: int, columns: int, pitch_bytes: int, dtype: torch.dtype, box_rows: int) -> bytes:
    """Encode a map of rows for which there is no tensor of two dimensions; see ``tensor_map``."""
    return _encoded(address, rows, columns, pitch_bytes, _TYPES[dtype], box_rows)


@functools.lru_cache(maxsize=1 << 14)
def _encoded(address: int, rows: int, columns: int, pitch_bytes: int, element: int, box_rows: int) -> bytes:
    """A map follows from these numbers alone, so it may outlive the memory that it tells of."""
    room = ctypes.create_string_buffer(MAP_BYTES + _ALIGNMENT)
    begin = -ctypes.addressof(room) % _ALIGNMENT
    sizes, boxes, steps = ctypes.c_uint64 * 2, ctypes.c_uint32 * 2, ctypes.c_uint32 * 2
    status = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled(
        ctypes.c_void_p(ctypes.addressof(room) + begin),
        ctypes.c_int(element),
        ctypes.c_uint32(2),
        ctypes.c_void_p(address),
        sizes(columns, rows),
        (ctypes.c_uint64 * 1)(pitch_bytes),
        boxes(BOX_COLUMNS, box_rows),
        steps(1, 1),
        *(ctypes.c_int(_NOT_INTERLEAVED), ctypes.c_int(_SWIZZLE_128_BYTES)),
        *(ctypes.c_int(_FETCH_256_BYTES), ctypes.c_int(_ZEROS_BEYOND)),
    )
    if status:
        raise KernelError(
            f"the driver encodes no map of {rows} x {columns} numbers {pitch_bytes} bytes apart at {address:#x}, "
            f"in boxes of {box_rows}: CUDA error {status}"
        )
    return room.raw[begin : begin + MAP_BYTES]
