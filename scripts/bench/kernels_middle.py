"""Middle products beside cuBLAS, on every shape of Llama-3-8B (L8B) and Qwen3-0.6B (Q06), alone and with what follows.

``headrace.testing.product_cases`` says how; ``time_joined`` is of a product with its gate or its sum, beside cuBLAS and
the engine's kernels around it (of a head and of queries, keys and values: beside the cuBLAS that the engine takes),
both as dependent launches. Every number of tokens from 16 on is measured, those for which the engine takes another
kernel too; fewer where the engine takes this one.
"""

import re

import torch

from headrace.kernels.middle_choice import is_best
from headrace.kernels.middle_product import MiddleProduct
from headrace.kernels.thin_choice import FEW_TOKENS, Product
from headrace.testing.graph_timing import GraphTimer
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.product_cases import SHAPES, joined_launches, report_alone, weights
from headrace.testing.rows import ONLY, Report, arguments

DEVICE = torch.device("cuda", 0)
NUM_TOKENS = (4, 8, 16, 32, 64, 128)


def main() -> None:
    wanted = arguments(__doc__ or "", [ONLY])
    need_gpu()
    report, timer = Report("scripts/bench/kernels_middle.py", saves=wanted.save), GraphTimer(DEVICE)
    for name, shape in SHAPES.items():
        measured = [n for n in NUM_TOKENS if n > FEW_TOKENS or is_best(Product(n, *shape))]
        asked = [n for n in measured if re.search(wanted.only, f"{name}_{n}")]
        products = [MiddleProduct(weight) for weight in weights(*shape, DEVICE)] if asked else []
        for num_tokens in asked:
            case = f"kernel/middle_product/{name}_{num_tokens}"
            report_alone(report, timer, case, num_tokens, products)
            one, several = zip(*joined_launches(name, num_tokens, products), strict=True)
            joined_us, apart_us = timer.medians_us([one, several], programmatic=True)
            report.add(case, "time_joined", joined_us, "us", peer="cuBLAS, and kernels beside it", peer_value=apart_us)
    report.finish(save=wanted.save)


if __name__ == "__main__":
    main()
