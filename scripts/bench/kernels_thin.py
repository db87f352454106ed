"""Thin products beside cuBLAS, on every shape of Llama-3-8B (L8B) and Qwen3-0.6B (Q06), alone and with what they join.

``headrace.testing.product_cases`` says how; ``time_joined`` is of a product with its norm (where the engine joins it),
and its gate or its sum, beside the same as kernels of their own, both as dependent launches.
"""

from collections.abc import Iterator
from functools import partial

import torch

from headrace.kernels.activation import swiglu
from headrace.kernels.add import add
from headrace.kernels.rms_norm import rms_norm
from headrace.kernels.thin_choice import FEW_TOKENS, Product, choose_norming
from headrace.kernels.thin_product import Norm, ThinProduct
from headrace.testing.graph_timing import GraphTimer, Operation
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.product_cases import SHAPES, adds_to_residual, in_turn, is_gated, report_alone, weights
from headrace.testing.rows import Report, arguments

DEVICE = torch.device("cuda", 0)
NUM_TOKENS = (*range(1, 9), 12, 16)


def joined(name: str, num_tokens: int, products: list[ThinProduct]) -> Iterator[tuple[Operation, Operation]]:
    """What a model does around a product, joined as in the engine and apart; nothing where these are the same."""
    out_features, in_features = products[0].weight.shape
    joins_norm = choose_norming(Product(num_tokens, out_features, in_features)) is not None
    if not joins_norm and not adds_to_residual(name) and not is_gated(name):
        return
    x = torch.randn(num_tokens, in_features, device=DEVICE, dtype=torch.bfloat16)
    out, normed = x.new_empty(num_tokens, out_features), torch.empty_like(x)
    half, residual = x.new_empty(num_tokens, out_features // 2), torch.zeros_like(out)
    norm = Norm(torch.ones_like(x[0]), 1e-5)
    first: list[Operation] = [partial(rms_norm, x, norm.weight, norm.eps, out=normed)]
    for product in products:
        if adds_to_residual(name):
            several = [partial(product, x, out), partial(add, residual, out)]
            yield partial(product, x, residual, residual=residual), partial(in_turn, several)
        elif is_gated(name):
            gate = partial(swiglu, out, layout="alternating", out=half)
            apart: list[Operation] = [*first, partial(product, normed, out), gate]
            one: Operation = partial(product, x, half, norm=norm, gated=True)
            if not joins_norm:
                one = partial(in_turn, [*first, partial(product, normed, half, gated=True)])
            yield one, partial(in_turn, apart)
        else:
            yield partial(product, x, out, norm=norm), partial(in_turn, [*first, partial(product, normed, out)])


def main() -> None:
    wanted = arguments(__doc__ or "")
    need_gpu()
    report, timer = Report("scripts/bench/kernels_thin.py", saves=wanted.save), GraphTimer(DEVICE)
    for name, shape in SHAPES.items():
        products = [ThinProduct(weight) for weight in weights(*shape, DEVICE)]
        for num_tokens in NUM_TOKENS:
            case = f"kernel/thin_product/{name}_{num_tokens}"
            report_alone(report, timer, case, num_tokens, products)
            pairs = list(joined(name, num_tokens, products)) if num_tokens <= FEW_TOKENS else []
            if pairs:
                one, several = zip(*pairs, strict=True)
                joined_us, apart_us = timer.medians_us([one, several], programmatic=True)
                report.add(case, "time_joined", joined_us, "us", peer="several kernels", peer_value=apart_us)
    report.finish(save=wanted.save)


if __name__ == "__main__":
    main()
