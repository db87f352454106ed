"""Pages of keys and values as kernels read and write them."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import require


@dataclass(frozen=True, slots=True)
class KVPages:
    """A layer's memory of keys and values, and who owns which page.

    Attributes:
        keys: ``[num_pages, num_kv_heads, page_size, head_dim]``; strides are free but the last, which is 1, so that
            keys and values may be views of one tensor ``[num_pages, 2, …]``.
        values: the same, with the same strides.
        page_table: int32 ``[num_rows, max_pages]``, contiguous: a row's pages in order.
        page_shape: num_kv_heads, page_size and head_dim.
        strides: of keys and of values.
        alignment: bytes, 16 at most, at whose multiples the keys and the values of each token's heads begin.
    """

    keys: Tensor
    values: Tensor
    page_table: Tensor
    # Asked in every launch, and told once: pages stay where they are.
    page_shape: tuple[int, int, int] = field(init=False)
    strides: tuple[int, ...] = field(init=False)
    alignment: int = field(init=False)

    def __post_init__(self) -> None:
        keys, values = self.keys, self.values
        if keys.dtype != values.dtype or keys.shape != values.shape or keys.dim() != 4:
            raise KernelError(f"pages are {keys.dtype} {tuple(keys.shape)} and {values.dtype} {tuple(values.shape)}")
        if keys.stride() != values.stride() or keys.stride(3) != 1:
            raise KernelError("keys and values have different strides, or heads that are not contiguous")
        require(self.page_table, "page_table", self.page_table.shape, torch.int32, alignment=4)
        num_kv_heads, page_size, head_dim = keys.shape[1:]
        steps = (stride * keys.element_size() for stride in keys.stride()[:3])
        object.__setattr__(self, "page_shape", (num_kv_heads, page_size, head_dim))
        object.__setattr__(self, "strides", keys.stride())
        object.__setattr__(self, "alignment", math.gcd(16, keys.data_ptr(), values.data_ptr(), *steps))
