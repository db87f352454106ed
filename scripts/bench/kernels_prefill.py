"""Prefill attention over pages beside torch's flash attention and the card's matrix products.

bf16, 32 query heads on 8 heads of keys of 128 unless the case says otherwise; pages of 16 tokens lie in random order. A
case is ``kernel/prefill_attention/<rows>x<queries>`` for whole prompts, ``<rows>x<queries>on<keys before>`` for chunks.
Launches follow each other in a graph. Operations counted are those of scores and sums that causal attention needs: two
products of head_dim for each pair of a query and a key that it sees. torch reads keys and values from plain tensors,
without pages (its variable-length flash attention, causal).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from headrace.kernels.kv_pages import KVPages
from headrace.kernels.prefill_attention import PrefillAttention
from headrace.kernels.prefill_shape import Block, PrefillShape
from headrace.testing.graph_timing import GraphTimer, Operation
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.rows import ONLY, Report, arguments

DEVICE = torch.device("cuda", 0)
L8B = PrefillShape(num_kv_heads=8, group=4, head_dim=128, dtype=torch.bfloat16, max_rows=1, max_tokens=1)
Rows = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Case:
    """``rows``: queries and keys of each; ``beside_torch``: whether torch computes the same thing."""

    name: str
    rows: Rows
    shape: PrefillShape = L8B
    window: int | None = None
    block: Block | None = None
    beside_torch: bool = True

    @property
    def operations(self) -> int:
        """Floating-point operations."""
        pairs = sum(
            min(length - queries + i + 1, self.window or length)
            for queries, length in self.rows
            for i in range(queries)
        )
        return 4 * self.shape.head_dim * self.shape.num_heads * pairs


def cases() -> Iterator[Case]:
    prompts = [(1024, 1024)] * 64
    lengths = torch.randint(1, 2048, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    yield Case("64x1024", prompts)
    yield Case("8x1024", prompts[:8])
    for rows, queries in ((256, 128), (16, 512), (1, 512), (1, 2048), (1, 4096), (4, 16384)):
        yield Case(f"{rows}x{queries}", [(queries, queries)] * rows)
    yield Case("64xragged", [(length, length) for length in lengths])
    for rows, queries, before in ((1, 512, 4096), (4, 512, 4096), (1, 2048, 30000)):
        yield Case(f"{rows}x{queries}on{before}", [(queries, before + queries)] * rows)
    yield Case("1x1024on1024_64x1on999", [(1024, 2048), *[(1, 1000)] * 64])
    yield Case("1x16384_window_1024", [(16384, 16384)], window=1024, beside_torch=False)
    yield Case("64x1024_pages_of_64", prompts, replace(L8B, page_size=64), beside_torch=False)
    yield Case("64x1024_fp16", prompts, replace(L8B, dtype=torch.float16))
    yield Case("8x1024_fp32", prompts[:8], replace(L8B, dtype=torch.float32), beside_torch=False)
    for block in (Block(128, 32), Block(64, 64, 3), Block(64, 32, 3)):
        name = f"64x1024_blocks_of_{block.rows}x{block.keys}"
        yield Case(name, prompts, block=block, beside_torch=False)
    if torch.cuda.get_device_capability(DEVICE) == (9, 0):
        block = Block(128, 64)
        yield Case("64x1024_single_warps", prompts, block=block, beside_torch=False)
        yield Case("1x4096_single_warps", [(4096, 4096)], block=block, beside_torch=False)
        yield Case("4x16384_single_warps", [(16384, 16384)] * 4, block=block, beside_torch=False)
        yield Case("4x512on4096_single_warps", [(512, 4608)] * 4, block=block, beside_torch=False)
        yield Case("64x1024_32on8x64_single_warps", prompts, replace(L8B, head_dim=64), block=block, beside_torch=False)
        for heads, group, head_dim in ((32, 1, 80), (8, 3, 96), (4, 4, 256)):
            shape = replace(L8B, num_kv_heads=heads, group=group, head_dim=head_dim)
            block = Block(128, 64) if head_dim <= 128 else Block(64, 32)
            name = f"64x1024_{heads * group}on{heads}x{head_dim}_single_warps"
            yield Case(name, prompts, shape, block=block, beside_torch=False)
        block, shape = Block(128, 64, warpgroups=True), replace(L8B, head_dim=64)
        yield Case("64x1024_without_ring", prompts, block=block, beside_torch=False)
        yield Case("8x1024_without_ring", prompts[:8], block=block, beside_torch=False)
        yield Case("1x4096_without_ring", [(4096, 4096)], block=block, beside_torch=False)
        yield Case("4x512on4096_without_ring", [(512, 4608)] * 4, block=block, beside_torch=False)
        yield Case("64x1024_32on8x64_blocks_of_128", prompts, shape, block=block, beside_torch=False)
    for heads, group, head_dim in ((8, 2, 128), (32, 1, 128), (8, 4, 64), (32, 1, 80), (8, 3, 96), (4, 4, 256)):
        shape = replace(L8B, num_kv_heads=heads, group=group, head_dim=head_dim)
        yield Case(f"64x1024_{heads * group}on{heads}x{head_dim}", prompts, shape)


def launch(case: Case) -> Operation:
    num_tokens, counts = _num_tokens(case), [-(-length // case.shape.page_size) for _, length in case.rows]
    shape = replace(case.shape, max_rows=len(case.rows), max_tokens=num_tokens)
    memory = _normal(sum(counts), 2, shape.num_kv_heads, shape.page_size, shape.head_dim, dtype=shape.dtype)
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    for row, ids in enumerate(torch.split_with_sizes(torch.randperm(sum(counts), dtype=torch.int32), counts)):
        table[row, : len(ids)] = ids
    query = _normal(num_tokens, shape.num_heads, shape.head_dim, dtype=shape.dtype)
    attention, lengths = PrefillAttention(shape, DEVICE, block=case.block), [length for _, length in case.rows]
    attention.plan(_starts(queries for queries, _ in case.rows), _int32(lengths), num_tokens)
    pages = KVPages(memory[:, 0], memory[:, 1], table.to(DEVICE))
    return partial(attention.run, torch.empty_like(query), query, pages, window=case.window)


def plan(case: Case) -> Operation:
    num_tokens = _num_tokens(case)
    attention = PrefillAttention(replace(case.shape, max_rows=len(case.rows), max_tokens=num_tokens), DEVICE)
    lengths = _int32([length for _, length in case.rows])
    return partial(attention.plan, _starts(queries for queries, _ in case.rows), lengths, num_tokens)


def peer(case: Case) -> Operation:
    shape, total = case.shape, sum(length for _, length in case.rows)
    query = _normal(_num_tokens(case), shape.num_heads, shape.head_dim, dtype=shape.dtype)
    keys, values = (_normal(total, shape.num_kv_heads, shape.head_dim, dtype=shape.dtype) for _ in range(2))
    starts, ends = (_starts(row[side] for row in case.rows) for side in (0, 1))
    longest = (max(queries for queries, _ in case.rows), max(length for _, length in case.rows))
    return partial(
        torch.ops.aten._flash_attention_forward, query, keys, values, starts, ends, *longest, 0.0, True, False
    )


def _num_tokens(case: Case) -> int:
    return sum(queries for queries, _ in case.rows)


def _normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=dtype)


def _int32(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def _starts(counts: Iterator[int]) -> Tensor:
    return _int32([0, *accumulate(counts)])


def main() -> None:
    wanted = arguments(__doc__ or "", [ONLY])
    need_gpu()
    report, timer = Report("scripts/bench/kernels_prefill.py", saves=wanted.save), GraphTimer(DEVICE)
    a, b = (_normal(8192, 8192, dtype=torch.bfloat16) for _ in range(2))
    (product_us,) = timer.medians_us([[partial(torch.mm, a, b)]])
    limit = 2 * 8192**3 / product_us / 1e6
    report.add("kernel/product/8192", "rate", limit, "TFLOP/s")
    for case in (case for case in cases() if re.search(wanted.only, case.name)):
        operations = [[launch(case)], *([[peer(case)]] if case.beside_torch else [])]
        time_us, *peers_us = timer.medians_us(operations)
        name, peer_us = f"kernel/prefill_attention/{case.name}", min(peers_us, default=None)
        report.add(name, "time", time_us, "us", peer="torch flash attention" if peers_us else "", peer_value=peer_us)
        report.add(name, "rate", case.operations / time_us / 1e6, "TFLOP/s", peer="product", peer_value=limit)
        if case.name == "64xragged":
            (plan_us,) = timer.medians_us([[plan(case)]])
            report.add(f"kernel/prefill_plan/{case.name}", "time", plan_us, "us")
        del operations
    report.finish(save=wanted.save)


if __name__ == "__main__":
    main()
