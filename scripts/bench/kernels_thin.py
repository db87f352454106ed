"""Thin and middle products beside cuBLAS, on every shape of Llama-3-8B (L8B) and Qwen3-0.6B (Q06), alone and joined.

bf16, random numbers; every launch reads another copy of the weight, and the copies are larger than the cache. ``time``
is of a launch among launches in a graph, ``time_dependent`` of one that may begin before the one before it has ended,
as in the engine's graph; cuBLAS, which does not wait for the one before it, cannot be launched so and stands beside
both. ``time_joined`` is of a thin product with its norm, and its gate or its sum, beside the same as kernels of their
own, both launched so; and of a middle product with its gate or its sum, beside cuBLAS and what stands around that.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from headrace.kernels.activation import swiglu
from headrace.kernels.add import add
from headrace.kernels.blas import multiply, multiply_into
from headrace.kernels.middle_product import MiddleProduct
from headrace.kernels.rms_norm import rms_norm
from headrace.kernels.thin_choice import FEW_TOKENS
from headrace.kernels.thin_product import Norm, ThinProduct
from headrace.testing.graph_timing import GraphTimer, Operation
from headrace.testing.rows import Report, arguments

DEVICE = torch.device("cuda", 0)
COPIES_BYTES = 400 << 20
NUM_TOKENS = (1, 2, 4, 8, 12, 16)
MIDDLE_TOKENS = (12, 16, 24, 32, 48, 64, 96, 128)
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


def weights(out_features: int, in_features: int) -> list[Tensor]:
    copies = max(2, COPIES_BYTES // (2 * out_features * in_features))
    shape = (out_features, in_features)
    return [torch.empty(shape, device=DEVICE, dtype=torch.bfloat16).normal_(0, 0.02) for _ in range(copies)]


def launches(num_tokens: int, products: Sequence[ThinProduct | MiddleProduct]) -> Iterator[tuple[Operation, Operation]]:
    out_features, in_features = products[0].weight.shape
    x = torch.randn(num_tokens, in_features, device=DEVICE, dtype=torch.bfloat16)
    out = x.new_empty(num_tokens, out_features)
    for product in products:
        yield partial(product, x, out), partial(torch.mm, x, product.weight.t(), out=out)


def joined(name: str, num_tokens: int, products: list[ThinProduct]) -> Iterator[tuple[Operation, Operation]]:
    """What a model does around a product, in one kernel and in several."""
    out_features, in_features = products[0].weight.shape
    x = torch.randn(num_tokens, in_features, device=DEVICE, dtype=torch.bfloat16)
    out, normed = x.new_empty(num_tokens, out_features), torch.empty_like(x)
    half, residual = x.new_empty(num_tokens, out_features // 2), torch.zeros_like(out)
    norm = Norm(torch.ones_like(x[0]), 1e-5)
    first: list[Operation] = [partial(rms_norm, x, norm.weight, norm.eps, out=normed)]
    for product in products:
        if name.endswith(("_out", "_down")):
            several = [partial(product, x, out), partial(add, residual, out)]
            yield partial(product, x, residual, residual=residual), partial(in_turn, several)
        elif name.endswith("_gate_up"):
            gate = partial(swiglu, out, layout="alternating", out=half)
            apart: list[Operation] = [*first, partial(product, normed, out), gate]
            yield partial(product, x, half, norm=norm, gated=True), partial(in_turn, apart)
        else:
            yield partial(product, x, out, norm=norm), partial(in_turn, [*first, partial(product, normed, out)])


def middle_joined(
    name: str, num_tokens: int, products: Sequence[MiddleProduct]
) -> Iterator[tuple[Operation, Operation]]:
    """What a model does behind a product, in one kernel, and by cuBLAS and the engine's kernels."""
    out_features, in_features = products[0].weight.shape
    x = torch.randn(num_tokens, in_features, device=DEVICE, dtype=torch.bfloat16)
    out = x.new_empty(num_tokens, out_features)
    half, residual = x.new_empty(num_tokens, out_features // 2), torch.zeros_like(out)
    for product in products:
        weight = product.weight
        if name.endswith(("_out", "_down")):
            yield partial(product, x, residual, residual=residual), partial(multiply_into, residual, x, weight)
        elif name.endswith("_gate_up"):
            gate = partial(swiglu, out, layout="alternating", out=half)
            apart: list[Operation] = [partial(multiply, x, weight, None, out), gate]
            yield partial(product, x, half, gated=True), partial(in_turn, apart)
        else:
            yield partial(product, x, out), partial(multiply, x, weight, None, out)


def in_turn(operations: Sequence[Operation]) -> None:
    for operation in operations:
        operation()


def main() -> None:
    wanted = arguments(__doc__ or "")
    report, timer = Report("scripts/bench/kernels_thin.py"), GraphTimer(DEVICE)
    for name, (out_features, in_features) in SHAPES.items():
        copies = weights(out_features, in_features)
        products, middle = [ThinProduct(weight) for weight in copies], [MiddleProduct(weight) for weight in copies]
        for num_tokens in MIDDLE_TOKENS:
            case = f"kernel/middle_product/{name}_{num_tokens}"
            ours, theirs = zip(*launches(num_tokens, middle), strict=True)
            time_us, peer_us = timer.medians_us([ours, theirs])
            (dependent_us,) = timer.medians_us([ours], programmatic=True)
            report.add(case, "time", time_us, "us", peer="cuBLAS", peer_value=peer_us)
            report.add(case, "time_dependent", dependent_us, "us", peer="cuBLAS", peer_value=peer_us)
            one, several = zip(*middle_joined(name, num_tokens, middle), strict=True)
            joined_us, apart_us = timer.medians_us([one, several], programmatic=True)
            report.add(case, "time_joined", joined_us, "us", peer="cuBLAS and kernels beside it", peer_value=apart_us)
        for num_tokens in NUM_TOKENS:
            ours, theirs = zip(*launches(num_tokens, products), strict=True)
            case = f"kernel/thin_product/{name}_{num_tokens}"
            time_us, peer_us = timer.medians_us([ours, theirs])
            (dependent_us,) = timer.medians_us([ours], programmatic=True)
            report.add(case, "time", time_us, "us", peer="cuBLAS", peer_value=peer_us)
            report.add(case, "time_dependent", dependent_us, "us", peer="cuBLAS", peer_value=peer_us)
            report.add(case, "bandwidth", products[0].weight.nbytes / time_us / 1e3, "GB/s")
            if num_tokens <= FEW_TOKENS:
                one, several = zip(*joined(name, num_tokens, products), strict=True)
                joined_us, apart_us = timer.medians_us([one, several], programmatic=True)
                report.add(case, "time_joined", joined_us, "us", peer="several kernels", peer_value=apart_us)
    report.finish(save=wanted.save)


if __name__ == "__main__":
    main()
