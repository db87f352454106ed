"""Launches of ``cuda/prefill_ring.cu``: prefill attention whose keys and values the copy engine brings.

``PrefillAttention`` plans, checks, and calls this for steps of long prompts.
"""

import functools
import math

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.device import open_device
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.launch import Kernel, load
from headrace.kernels.prefill_ring import Ring
from headrace.kernels.prefill_shape import UNIT_KEYS, PrefillShape
from headrace.kernels.rotary import Rotary
from headrace.kernels.tensor_map import rows_map


class RingAttention:
    """The kernel for one shape on one GPU.

    Args:
        shape: what all steps have in common.
        ring: how a block computes.
        index: of the GPU, a Hopper.
    """

    def __init__(self, shape: PrefillShape, ring: Ring, index: int) -> None:
        self._shape = shape
        self._ring = ring
        self._num_sms = open_device(index).num_sms
        self._shared_bytes = ring.shared_bytes(shape.dtype, shape.head_dim)
        self._kernel = _kernel(index, shape.dtype, shape.head_dim, ring)

    def __call__(
        self,
        out: Tensor,
        query: Tensor,
        pages: KVPages,
        plan: Tensor,
        num_items: int,
        *,
        window: int,
        scale: float,
        rotary: Rotary | None,
    ) -> None:
        """Attend, on torch's current stream; ``PrefillAttention.run`` has checked all of it.

        Args:
            out: ``[num_tokens, num_heads, head_dim]``.
            query: the same shape, tokens strided.
            pages: keys and values.
            plan: of ``cuda/prefill_plan.cu``, for items of the ring's rows; the kernel counts in it.
            num_items: that a head of keys has at most.
            window: 0: none.
            scale: of scores.
            rotary: where the ring rotates.

        Raises:
            KernelError: pages or heads do not lie whole tokens apart.
        """
        shape, head_dim = self._shape, self._shape.head_dim
        place = pages.keys.shape[0], pages.page_shape, pages.strides, shape.dtype
        self._kernel(
            (min(num_items * shape.num_kv_heads, self._num_sms), 1),
            (self._ring.threads, 1, 1),
            *(out, query, pages.page_table, plan),
            *((None, None) if rotary is None else (rotary.cosines, rotary.sines)),
            *(_map(pages.keys.data_ptr(), *place), _map(pages.values.data_ptr(), *place), pages.values),
            *(shape.num_kv_heads, shape.group, 65536 // shape.group + 1),
            *(pages.page_table.shape[1], shape.page_size // UNIT_KEYS, window, num_items),
            *(pages.strides[0] // head_dim, pages.strides[1] // head_dim),
            *(query.stride(0), scale * math.log2(math.e)),
            shared_bytes=self._shared_bytes,
        )


@functools.lru_cache(maxsize=1 << 10)
def _map(
    address: int, num_pages: int, page_shape: tuple[int, int, int], strides: tuple[int, ...], dtype: torch.dtype
) -> bytes:
    """Tell the copy engine of keys or values as rows of head_dim numbers, of which it copies ``UNIT_KEYS`` at a time.

    Pages and heads lie multiples of head_dim apart, so that rows are counted through all of them. A map follows from
    these numbers alone, so it may outlive the memory that it tells of.

    Raises:
        KernelError: they lie otherwise, or the driver refused.
    """
    num_heads, page_size, head_dim = page_shape
    if any(stride % head_dim for stride in strides[:2]):
        raise KernelError(f"pages have strides {strides}: pages and heads lie whole tokens of {head_dim} numbers apart")
    behind = (num_pages - 1) * strides[0] + (num_heads - 1) * strides[1]
    num_rows = behind // head_dim + page_size
    return rows_map(address, num_rows, head_dim, head_dim * dtype.itemsize, dtype, UNIT_KEYS)


@functools.cache
def _kernel(index: int, dtype: torch.dtype, head_dim: int, ring: Ring) -> Kernel:
    return load(
        "prefill_ring",
        "prefill_ring",
        "PPPPPPTTPiiiiiiiiiqf",
        torch.device("cuda", index),
        shared_bytes=ring.shared_bytes(dtype, head_dim),
        **ring.macros(dtype, head_dim),
    )
