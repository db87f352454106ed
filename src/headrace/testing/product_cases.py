"""The products of Llama-3-8B (L8B) and Qwen3-0.6B (Q06) as scripts under scripts/bench time them, ours beside cuBLAS's.

bf16, random numbers; every launch reads another copy of the weight, and the copies are larger than the cache.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from headrace.kernels.activation import swiglu
from headrace.kernels.blas import multiply, multiply_into
from headrace.testing.graph_timing import GraphTimer, Operation
from headrace.testing.rows import Report

#: ``(out_features, in_features)`` by model and place in it.
SHAPES = {
    "L8B_qkv": (6144, 4096),
    "L8B_out": (4096, 4096),
    "L8B_gate_up": (28672, 4096),
    "L8B_down": (4096, 14336),
    "L8B_head": (128256, 4096),
    "Q06_qkv": (4096, 1024),
    "Q06_out": (1024, 2048),
    "Q06_gate_up": (6144, 1024),
    "Q06_down": (1024, 3072),
    "Q06_head": (151936, 1024),
}
_COPIES_BYTES = 400 << 20


class OwnProduct(Protocol):
    """A kernel of ours for one weight."""

    weight: Tensor

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """Multiply ``x`` ``[num_tokens, in_features]`` into ``out`` ``[num_tokens, out_features]``."""


class JoiningProduct(Protocol):
    """A kernel of ours for one weight that does what follows, too."""

    weight: Tensor

    def __call__(self, x: Tensor, out: Tensor, *, residual: Tensor | None = None, gated: bool = False) -> None:
        """Multiply ``x`` ``[num_tokens, in_features]`` into ``out``, with a sum or a gate."""


def weights(out_features: int, in_features: int, device: torch.device) -> list[Tensor]:
    """Copies of a weight, bf16 ``[out_features, in_features]``, together larger than the cache; two at least."""
    copies = max(2, _COPIES_BYTES // (2 * out_features * in_features))
    shape = (out_features, in_features)
    return [torch.empty(shape, device=device, dtype=torch.bfloat16).normal_(0, 0.02) for _ in range(copies)]


def adds_to_residual(name: str) -> bool:
    """Whether a model adds such a product to its residual stream."""
    return name.endswith(("_out", "_down"))


def is_gated(name: str) -> bool:
    """Whether gate and up alternate in such a weight's rows."""
    return name.endswith("_gate_up")


def report_alone(
    report: Report, timer: GraphTimer, case: str, num_tokens: int, products: Sequence[OwnProduct]
) -> float:
    """Time a product beside cuBLAS's: ``time``, ``time_dependent`` and ``bandwidth`` (of the weight alone).

    ``time`` is of a launch among launches in a graph, ``time_dependent`` of one that may begin before the one before it
    has ended, as in the engine's graph; cuBLAS, which does not wait for the one before it, cannot be launched so and
    stands beside both.

    Args:
        report: gets the rows.
        timer: of the weights' device.
        case: the rows' name.
        num_tokens: rows of x.
        products: one for each copy of the weight.

    Returns:
        ``time``, us.
    """
    ours, theirs = zip(*_launches(num_tokens, products), strict=True)
    time_us, peer_us = timer.medians_us([ours, theirs])
    (dependent_us,) = timer.medians_us([ours], programmatic=True)
    report.add(case, "time", time_us, "us", peer="cuBLAS", peer_value=peer_us)
    report.add(case, "time_dependent", dependent_us, "us", peer="cuBLAS", peer_value=peer_us)
    report.add(case, "bandwidth", products[0].weight.nbytes / time_us / 1e3, "GB/s")
    return time_us


def joined_launches(
    name: str, num_tokens: int, products: Sequence[JoiningProduct]
) -> Iterator[tuple[Operation, Operation]]:
    """Do what a model does with a product and behind it, in one kernel of ours, and in cuBLAS's and those beside it."""
    out_features, in_features = products[0].weight.shape
    x = torch.randn(num_tokens, in_features, device=products[0].weight.device, dtype=torch.bfloat16)
    out = x.new_empty(num_tokens, out_features)
    half, residual = x.new_empty(num_tokens, out_features // 2), torch.zeros_like(out)
    for product in products:
        plain = partial(multiply, x, product.weight, None, out)
        if adds_to_residual(name):
            yield partial(product, x, residual, residual=residual), partial(multiply_into, residual, x, product.weight)
        elif is_gated(name):
            gate = partial(swiglu, out, layout="alternating", out=half)
            yield partial(product, x, half, gated=True), partial(in_turn, [plain, gate])
        else:
            yield partial(product, x, out), plain


def _launches(num_tokens: int, products: Sequence[OwnProduct]) -> Iterator[tuple[Operation, Operation]]:
    weight = products[0].weight
    x = torch.randn(num_tokens, weight.shape[1], device=weight.device, dtype=torch.bfloat16)
    out = x.new_empty(num_tokens, weight.shape[0])
    for product in products:
        yield partial(product, x, out), partial(torch.mm, x, product.weight.t(), out=out)


def in_turn(operations: Sequence[Operation]) -> None:
    """Launch one after the other."""
    for operation in operations:
        operation()
