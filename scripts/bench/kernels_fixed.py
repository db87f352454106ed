"""Fixed products beside cuBLAS, on every shape of Llama-3-8B (L8B) and Qwen3-0.6B (Q06).

``headrace.testing.product_cases`` says how; ``rate`` stands beside what cuBLAS reaches with a product of 8192 x 8192 x
8192. cuBLAS may compute a row otherwise when other rows are beside it, a fixed product never does: the difference is
what that costs.
"""

import re
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from headrace.kernels.fixed_product import fixed_product
from headrace.testing.graph_timing import GraphTimer
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.product_cases import SHAPES, report_alone, weights
from headrace.testing.rows import ONLY, Report, arguments

DEVICE = torch.device("cuda", 0)
NUM_TOKENS = (1, 16, 64, 256, 2048)


@dataclass(slots=True)
class FixedProduct:
    """A fixed product with one weight."""

    weight: Tensor

    def __call__(self, x: Tensor, out: Tensor) -> None:
        fixed_product(x, self.weight, None, out)


def main() -> None:
    wanted = arguments(__doc__ or "", [ONLY])
    need_gpu()
    report, timer = Report("scripts/bench/kernels_fixed.py", saves=wanted.save), GraphTimer(DEVICE)
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    (product_us,) = timer.medians_us([[partial(torch.mm, a, b)]])
    limit = 2 * 8192**3 / product_us / 1e6
    report.add("kernel/product/8192", "rate", limit, "TFLOP/s")
    for name, shape in SHAPES.items():
        counts = [count for count in NUM_TOKENS if re.search(wanted.only, f"{name}_{count}")]
        products = [FixedProduct(weight) for weight in weights(*shape, DEVICE)] if counts else []
        for num_tokens in counts:
            case = f"kernel/fixed_product/{name}_{num_tokens}"
            time_us = report_alone(report, timer, case, num_tokens, products)
            rate = 2 * num_tokens * shape[0] * shape[1] / time_us / 1e6
            report.add(case, "rate", rate, "TFLOP/s", peer="product", peer_value=limit)
    report.finish(save=wanted.save)


if __name__ == "__main__":
    main()
