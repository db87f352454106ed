"""Wide products beside cuBLAS, on the shapes of Llama-3-8B (L8B) and Qwen3-0.6B (Q06) for which they are taken.

``headrace.testing.product_cases`` says how; ``time_joined`` is of a product with its gate or its sum, beside cuBLAS and
the engine's kernels around it, both as dependent launches.
"""

import torch

from headrace.kernels.thin_choice import Product
from headrace.kernels.wide_choice import MOST_TOKENS, choose
from headrace.kernels.wide_product import WideProduct
from headrace.testing.graph_timing import GraphTimer
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.product_cases import SHAPES, joined_launches, report_alone, weights
from headrace.testing.rows import Report, arguments

DEVICE = torch.device("cuda", 0)
NUM_TOKENS = (136, 160, 192, 256, 1024, 2048, 8192)


def main() -> None:
    wanted = arguments(__doc__ or "")
    need_gpu()
    report, timer = Report("scripts/bench/kernels_wide.py", saves=wanted.save), GraphTimer(DEVICE)
    for name, shape in SHAPES.items():
        taken = [num_tokens for num_tokens in NUM_TOKENS if choose(Product(num_tokens, *shape))]
        products = [WideProduct(weight) for weight in weights(*shape, DEVICE)] if taken else []
        for num_tokens in taken:
            case = f"kernel/wide_product/{name}_{num_tokens}"
            if num_tokens <= MOST_TOKENS:
                report_alone(report, timer, case, num_tokens, products)
            one, several = zip(*joined_launches(name, num_tokens, products), strict=True)
            joined_us, apart_us = timer.medians_us([one, several], programmatic=True)
            report.add(case, "time_joined", joined_us, "us", peer="cuBLAS, and kernels beside it", peer_value=apart_us)
            rate = 2 * num_tokens * shape[0] * shape[1] / joined_us / 1e6
            report.add(case, "rate", rate, "TFLOP/s")
    report.finish(save=wanted.save)


if __name__ == "__main__":
    main()
