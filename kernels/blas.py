"""Products of many tokens, by NVIDIA's libraries through torch: the one that was measured to be faster on an H200.

cuBLAS and cuBLASLt have the same kernels and choose otherwise among them (docs/bench/thin_product.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    """Compute ``x W^T (+ bias)``.

    Args:
        x: ``[num_tokens, in_features]``.
        weight: ``[out_features, in_features]``.
        bias: ``[out_features]``, or None.
        out: where to. Default: a new tensor.

    Returns:
        ``[num_tokens, out_features]``.
    """
    if prefers_lt(x.shape[0], *weight.shape):
        with _cublaslt():
            return _multiply(x, weight, bias, out)
    return _multiply(x, weight, bias, out)


def multiply_into(y: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add ``x W^T`` into ``y [num_tokens, out_features]``, before anything is rounded; arguments as ``multiply``."""
    if prefers_lt(x.shape[0], *weight.shape):
        with _cublaslt():
            torch.addmm(y, x, weight.T, out=y)
    else:
        torch.addmm(y, x, weight.T, out=y)


def prefers_lt(num_tokens: int, out_features: int, in_features: int) -> bool:
    """Say whether cuBLASLt chooses the better kernel, as measured in a model's graph.

    It does where a weight has few rows of many columns, whose sums want several blocks for each of them, and not for
    64 tokens; elsewhere it is behind, or there is no difference.
    """
    return out_features <= 4096 <= in_features and (16 < num_tokens <= 48 or 64 < num_tokens <= 112)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    return torch.mm(x, weight.T, out=out) if bias is None else torch.addmm(bias, x, weight.T, out=out)


@contextmanager
def _cublaslt() -> Iterator[None]:
    """Let torch use cuBLASLt within."""
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library("cublaslt")
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)
