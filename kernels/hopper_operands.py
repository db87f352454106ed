"""What Hopper's products (``middle_product``, ``wide_product``) can read and write: they fetch tiles by tensor maps."""

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.device import Device, open_device


def device_of_weight(weight: Tensor, bias: Tensor | None, product: str) -> Device:
    """Check a weight, and say which GPU it lies on.

    Args:
        weight: ``[out_features, in_features]``, bf16 or fp16, rows contiguous and 16-byte aligned, multiples of 8 of
            both, on a Hopper GPU.
        bias: ``[out_features]`` of the same dtype, contiguous, or None.
        product: what it is for, "a wide product", say.

    Raises:
        KernelError: the product's kernel could not read it.
    """
    if weight.dtype not in (torch.bfloat16, torch.float16):
        raise KernelError(f"{product} takes bf16 or fp16, not {weight.dtype}")
    if weight.dim() != 2 or weight.stride(1) != 1 or weight.shape[0] % 8 or weight.shape[1] % 8:
        raise KernelError(f"{product} wants multiples of 8 rows and columns, not {tuple(weight.shape)}")
    if weight.data_ptr() % 16 or weight.stride(0) % 8 or not weight.is_cuda:
        raise KernelError(f"{product}'s weight lies on a GPU, its rows at multiples of 16 bytes")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype or bias.stride(0) != 1):
        raise KernelError(f"a bias of {tuple(bias.shape)}, {bias.dtype} does not fit the weight")
    device = open_device(weight.device.index)
    if not device.arch.startswith("sm_9"):
        raise KernelError(f"{product} needs Hopper's products (sm_90a); this GPU is {device.arch}")
    return device


def require_rows(name: str, x: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Check activations that a product reads or writes.

    Raises:
        KernelError: shape or dtype is another one, or rows are not contiguous at multiples of 16 bytes.
    """
    if x.shape != shape or x.dtype != dtype:
        raise KernelError(f"{name} is {tuple(x.shape)}, {x.dtype}, not {list(shape)}, {dtype}")
    if x.stride(1) != 1 or x.stride(0) % 8 or x.data_ptr() % 16:
        raise KernelError(f"{name}'s rows are contiguous and begin at multiples of 16 bytes")
