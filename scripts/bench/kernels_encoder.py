"""Encoders' attention beside torch's flash attention and the card's matrix products.

fp16, random numbers. A case is ``kernel/encoder_attention/<heads>x<head size>/<rows>x<tokens>``; ``150_sentences`` are
rows of 5 to 500 tokens, those of ``encoder.py``. Launches follow each other in a graph. Operations counted are two
products of head_dim for each pair of tokens of a row. Ours adds the bias of queries, keys and values; torch (its
variable-length flash attention) reads them without one.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from headrace.kernels.encoder_attention import encoder_attention, plan_items
from headrace.testing.graph_timing import GraphTimer, Operation
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.rows import ONLY, Report, arguments

DEVICE = torch.device("cuda", 0)


@dataclass(frozen=True, slots=True)
class Case:
    """``lengths``: tokens of each row."""

    name: str
    lengths: Sequence[int]
    num_heads: int = 12
    head_dim: int = 64

    @property
    def operations(self) -> int:
        """Floating-point operations."""
        return 4 * self.num_heads * self.head_dim * sum(length**2 for length in self.lengths)


def cases() -> Iterator[Case]:
    sentences = torch.randint(5, 501, (150,), generator=torch.Generator().manual_seed(0)).tolist()
    for num_heads, head_dim in ((12, 64), (12, 32), (16, 80), (16, 96), (16, 128)):
        yield Case(f"{num_heads}x{head_dim}/150_sentences", sentences, num_heads, head_dim)
    for rows, length in ((128, 512), (512, 128), (32, 2048), (20, 250), (8, 64), (1, 500), (1, 100), (1, 10)):
        yield Case(f"12x64/{rows}x{length}", [length] * rows)


def launches(case: Case) -> tuple[Operation, Operation]:
    """Ours and torch's."""
    width, num_tokens = case.num_heads * case.head_dim, sum(case.lengths)
    qkv, bias = _normal(num_tokens, 3 * width), _normal(3 * width)
    items, out = torch.from_numpy(plan_items(case.lengths)).to(DEVICE), _normal(num_tokens, width)
    starts = torch.tensor([0, *accumulate(case.lengths)], dtype=torch.int32, device=DEVICE)
    query, key, value = qkv.view(num_tokens, 3, case.num_heads, case.head_dim).unbind(1)
    flash, longest = torch.ops.aten._flash_attention_forward, max(case.lengths)
    return (
        partial(encoder_attention, qkv, bias, items, case.num_heads, out=out),
        partial(flash, query, key, value, starts, starts, longest, longest, 0.0, False, False),
    )


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.float16)


def main() -> None:
    wanted = arguments(__doc__ or "", [ONLY])
    need_gpu()
    report, timer = Report("scripts/bench/kernels_encoder.py", saves=wanted.save), GraphTimer(DEVICE)
    a, b = _normal(8192, 8192), _normal(8192, 8192)
    (product_us,) = timer.medians_us([[partial(torch.mm, a, b)]])
    limit = 2 * 8192**3 / product_us / 1e6
    report.add("kernel/product/8192", "rate", limit, "TFLOP/s")
    for case in (case for case in cases() if re.search(wanted.only, case.name)):
        ours, theirs = launches(case)
        time_us, peer_us = timer.medians_us([[ours], [theirs]])
        name = f"kernel/encoder_attention/{case.name}"
        report.add(name, "time", time_us, "us", peer="torch flash attention", peer_value=peer_us)
        report.add(name, "rate", case.operations / time_us / 1e6, "TFLOP/s", peer="product", peer_value=limit)
    report.finish(save=wanted.save)


if __name__ == "__main__":
    main()
