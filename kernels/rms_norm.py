"""RMSNorm with the residual addition and a bias fused in: ``cuda/rms_norm.cu``."""

import functools

import torch
from torch import Tensor

from headrace.kernels.checks import element_type, require
from headrace.kernels.device import open_device
from headrace.kernels.launch import Kernel, load
from headrace.kernels.rows import RowPlan, plan_rows, round_rows


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    residual: Tensor | None = None,
    input_bias: Tensor | None = None,
    update_residual: bool = True,
    out: Tensor | None = None,
    planned_rows: int | None = None,
) -> Tensor:
    """Normalise ``x + input_bias + residual`` by the root mean square over the last dimension, and scale.

    Sums are rounded to the dtype one by one, as separate operations would; the rest is fp32.

    Args:
        x: fp32, fp16 or bf16 ``[num_rows, width]``, contiguous.
        weight: ``[width]``.
        eps: added to the mean square.
        residual: ``[num_rows, width]``, added; the sum replaces it unless ``update_residual`` is False.
        input_bias: ``[width]``, added to x.
        update_residual: whether the sum is written back.
        out: where to; may be x. Default: a new tensor.
        planned_rows: share a row's work out as if there were so many rows; the order of its sums follows from it.
            Default: as many as there are, which is the fastest.

    Returns:
        ``[num_rows, width]``.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    num_rows, width = x.shape
    out = torch.empty_like(x) if out is None else out
    for name, tensor in (("x", x), ("residual", residual), ("out", out)):
        require(tensor, name, (num_rows, width), x.dtype)
    for name, tensor in (("weight", weight), ("input_bias", input_bias)):
        require(tensor, name, (width,), x.dtype)
    use = 0 if residual is None else 1 if update_residual else 2
    rows = round_rows(num_rows if planned_rows is None else planned_rows)
    biased = input_bias is not None
    kernel, plan = _planned(x.get_device(), element_type(x, "x"), x.element_size(), rows, width, use, biased)
    grid, block = (plan.num_blocks(num_rows),), (plan.threads,)
    kernel(grid, block, out, x, residual, input_bias, weight, num_rows, width, eps)
    return out


@functools.cache
def _planned(
    index: int, element: str, element_bytes: int, num_rows: int, width: int, residual: int, biased: bool
) -> tuple[Kernel, RowPlan]:
    """A step asks once a layer: one look-up by numbers takes less than the plan's own, and the kernel's by the plan."""
    plan = plan_rows(width, num_rows, element_bytes, open_device(index).num_sms)
    return _kernel(torch.device("cuda", index), element, plan, residual, biased), plan


@functools.cache
def _kernel(device: torch.device, element: str, plan: RowPlan, residual: int, biased: bool) -> Kernel:
    return load(
        "rms_norm",
        "rms_norm",
        "PPPPPqif",
        device,
        DTYPE=element,
        RESIDUAL=residual,
        BIASED=int(biased),
        **plan.macros,
    )
