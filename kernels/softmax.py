"""Masked softmax over the last dimension: ``cuda/softmax.cu``."""

import functools

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import element_type, require
from headrace.kernels.device import open_device
from headrace.kernels.launch import Kernel, load
from headrace.kernels.rows import RowPlan, divisor, plan_rows, round_rows

# The values are held in fp32: half as many vectors fit as of 16-bit values held as they are.
_MAX_VECS = 2
# A warp has no barrier to wait at, which is worth more than the registers of twice as many.
_WARP_VECS = 4
# The smallest fp32 number above 0: times any score, it is too small to tell scores apart.
_SMALLEST = 2.0**-149


def softmax(scores: Tensor, mask: Tensor | None = None, *, scale: float = 1.0, out: Tensor | None = None) -> Tensor:
    """Compute ``softmax(scores * scale + mask)``; a row that sees nothing becomes zeros, where torch gives NaN.

    Args:
        scores: fp32, fp16 or bf16 ``[batch, heads, queries, length]``, contiguous.
        mask: broadcast over the first three dimensions; bool, True where a query sees a key, or of the scores' dtype,
            added. Its last dimension is ``length``, contiguous.
        scale: multiplies the scores.
        out: where to; may be ``scores``. Default: a new tensor.

    Returns:
        ``[batch, heads, queries, length]``.

    Raises:
        KernelError: shapes, dtypes or devices do not fit, or a mask has 2^31 rows or more.
    """
    batch, heads, queries, length = scores.shape
    out = torch.empty_like(scores) if out is None else out
    require(scores, "scores", scores.shape, scores.dtype)
    require(out, "out", scores.shape, scores.dtype)
    num_rows = batch * heads * queries
    kind, strides, aligned = 0, (0, 0, 0), False
    if mask is not None:
        if num_rows >= 1 << 31:
            raise KernelError(f"{num_rows} rows cannot be masked at once: 2^31 - 1 can")
        if mask.dtype not in (torch.bool, scores.dtype):
            raise KernelError(f"mask has dtype {mask.dtype}; it should be bool or {scores.dtype}")
        spread = mask.expand(scores.shape)
        if spread.stride(3) != 1 and length > 1:
            raise KernelError("the mask's last dimension is not contiguous")
        kind = 1 if mask.dtype == torch.bool else 2
        strides = (spread.stride(0), spread.stride(1), spread.stride(2))
    num_sms = open_device(scores.get_device()).num_sms
    element_bytes = scores.element_size()
    plan = plan_rows(length, round_rows(num_rows), element_bytes, num_sms, _MAX_VECS, _WARP_VECS, splits_warps=True)
    if mask is not None:
        places = (*strides, mask.data_ptr() // mask.element_size())
        aligned = all(place % plan.vec == 0 for place in places)
    negative = kind != 2 and scale < 0
    if kind != 2:
        # What is not seen is -inf before it is multiplied: by no negative number, and not by 0.
        scale = abs(scale) or _SMALLEST
    kernel = _kernel(scores.device, element_type(scores, "scores"), plan, kind, aligned, negative)
    grid, block = (plan.num_blocks(num_rows),), (plan.threads,)
    divisors = (*divisor(queries), *divisor(heads))
    kernel(grid, block, out, scores, mask, num_rows, length, scale, heads, queries, *strides, *divisors)
    return out


@functools.cache
def _kernel(device: torch.device, element: str, plan: RowPlan, mask: int, aligned: bool, negative: bool) -> Kernel:
    return load(
        "softmax",
        "softmax",
        "PPPqifiiqqqIiIi",
        device,
        DTYPE=element,
        MASK=mask,
        MASK_ALIGNED=int(aligned),
        NEGATIVE=int(negative),
        **plan.macros,
    )
