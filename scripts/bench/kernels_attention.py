"""Decode attention over pages beside torch's flash attention and the card's read bandwidth.

bf16, 32 query heads on 8 heads of keys of 128 unless the case says otherwise; pages lie in random order. A case is
``kernel/decode_attention/<rows>x<keys>``; launches follow each other in a graph, over copies of the memory that
together are larger than the cache. Bytes are the keys and values that must be read. torch reads them from plain
tensors, without pages: its flash attention for rows of one length, its variable-length one for any, whichever is
faster.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from headrace.kernels.decode_attention import DecodeAttention
from headrace.kernels.decode_shape import DecodeShape
from headrace.kernels.kv_pages import KVPages
from headrace.testing.graph_timing import GraphTimer, Operation
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.rows import ONLY, Report, arguments

DEVICE = torch.device("cuda", 0)
COPIES_BYTES = 400 << 20
MORE_WORKS = ((8, 32000), (64, 1024), (256, 256), (1, 256), (8, 256), (1, 4000), (1, 32000), (16, 2000), (128, 1024))
L8B = DecodeShape(num_kv_heads=8, group=4, head_dim=128, dtype=torch.bfloat16, max_rows=256, max_pages=1)


@dataclass(frozen=True, slots=True)
class Case:
    """``beside_torch``: whether torch computes the same thing."""

    name: str
    shape: DecodeShape
    lengths: Sequence[int]
    beside_torch: bool = True


def cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    ragged = torch.randint(1, 2048, (256,), generator=generator).tolist()
    for rows, keys in ((8, 32000), (64, 4000), (64, 1024), (256, 256), (1, 256), (8, 256), (1, 4000), (1, 32000)):
        yield Case(f"{rows}x{keys}", L8B, [keys] * rows)
    # Numbers of rows by which blocks cannot be shared out evenly.
    for rows, keys in ((5, 32000), (10, 16000), (20, 4000)):
        yield Case(f"{rows}x{keys}", L8B, [keys] * rows, beside_torch=False)
    yield Case("256xragged", L8B, ragged)
    for rows, keys in ((8, 32000), (64, 4000), (64, 1024), (256, 256)):
        yield Case(f"{rows}x{keys}_pages_of_64", replace(L8B, page_size=64), [keys] * rows, beside_torch=False)
    for rows, keys in ((8, 32000), (256, 256)):
        shape = replace(L8B, segment_tokens=512)
        yield Case(f"{rows}x{keys}_segments_of_512", shape, [keys] * rows, beside_torch=False)
    yield Case("64x4000_window_1024", replace(L8B, window=1024), [4000] * 64, beside_torch=False)
    yield Case("64x1024_fp16", replace(L8B, dtype=torch.float16), [1024] * 64)
    yield Case("64x1024_fp32", replace(L8B, dtype=torch.float32), [1024] * 64, beside_torch=False)
    for heads, group, head_dim in ((8, 2, 128), (8, 7, 64), (32, 1, 80), (8, 3, 96), (4, 4, 256), (2, 16, 128)):
        shape = replace(L8B, num_kv_heads=heads, group=group, head_dim=head_dim)
        yield Case(f"64x4000_{heads * group}on{heads}x{head_dim}", shape, [4000] * 64)
    # Heads and groups whose sums take most registers, at other lengths.
    works = {f"{rows}x{keys}": [keys] * rows for rows, keys in MORE_WORKS} | {"256xragged": ragged}
    for (heads, group, head_dim), (work, lengths) in product(((4, 4, 256), (2, 16, 128)), works.items()):
        shape = replace(L8B, num_kv_heads=heads, group=group, head_dim=head_dim)
        yield Case(f"{work}_{heads * group}on{heads}x{head_dim}", shape, lengths)


def launches(case: Case) -> tuple[int, list[Operation]]:
    per_row = [-(-length // case.shape.page_size) for length in case.lengths]
    shape = replace(case.shape, max_pages=max(per_row), max_rows=len(per_row))
    page = (2, shape.num_kv_heads, shape.page_size, shape.head_dim)
    seen = [min(length, shape.window or length) for length in case.lengths]
    moved = sum(seen) * 2 * shape.num_kv_heads * shape.head_dim * shape.dtype.itemsize
    table = torch.zeros(len(per_row), shape.max_pages, dtype=torch.int32)
    order = torch.randperm(sum(per_row), dtype=torch.int32)
    for row, pages in enumerate(torch.split_with_sizes(order, per_row)):
        table[row, : len(pages)] = pages
    lengths, table = torch.tensor(case.lengths, dtype=torch.int32, device=DEVICE), table.to(DEVICE)
    query = torch.randn(len(per_row), shape.num_heads, shape.head_dim, device=DEVICE, dtype=shape.dtype)
    attention, out = DecodeAttention(shape, DEVICE), torch.empty_like(query)
    attention.plan(lengths)
    found: list[Operation] = []
    for _ in range(max(2, COPIES_BYTES // moved)):
        memory = torch.randn(sum(per_row), *page, device=DEVICE, dtype=shape.dtype)
        found.append(_launch(attention, out, query, KVPages(memory[:, 0], memory[:, 1], table), lengths))
    return moved, found


def _launch(attention: DecodeAttention, out: Tensor, query: Tensor, pages: KVPages, lengths: Tensor) -> Operation:
    return partial(attention.run, out, query, pages, lengths, old_is_settled=True)


def peers(case: Case, num_copies: int) -> list[list[Operation]]:
    shape, num_rows, total = case.shape, len(case.lengths), sum(case.lengths)
    query = torch.randn(num_rows, shape.num_heads, shape.head_dim, device=DEVICE, dtype=shape.dtype)
    kv = [
        torch.randn(2, total, shape.num_kv_heads, shape.head_dim, device=DEVICE, dtype=shape.dtype)
        for _ in range(num_copies)
    ]
    ends = torch.tensor([0, *case.lengths], device=DEVICE).cumsum(0, dtype=torch.int32)
    ones = torch.arange(num_rows + 1, device=DEVICE, dtype=torch.int32)
    found: list[list[Operation]] = [[partial(_varlen, query, x, ones, ends, max(case.lengths)) for x in kv]]
    if len(set(case.lengths)) == 1:
        found.append(
            [partial(_dense, query[:, :, None], x.view(2, num_rows, -1, *x.shape[2:]).transpose(2, 3)) for x in kv]
        )
    return found


def _varlen(query: Tensor, kv: Tensor, ones: Tensor, ends: Tensor, longest: int) -> object:
    return varlen_attn(query, kv[0], kv[1], ones, ends, 1, longest)


def _dense(query: Tensor, kv: Tensor) -> object:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return scaled_dot_product_attention(query, kv[0], kv[1], enable_gqa=True)


def main() -> None:
    wanted = arguments(__doc__ or "", [ONLY])
    need_gpu()
    report, timer = Report("scripts/bench/kernels_attention.py", saves=wanted.save), GraphTimer(DEVICE)
    limit = timer.read_gb_per_s()
    report.add("kernel/read/4GiB", "bandwidth", limit, "GB/s")
    for case in (case for case in cases() if re.search(wanted.only, case.name)):
        moved, ours = launches(case)
        operations = [ours, *(peers(case, len(ours)) if case.beside_torch else [])]
        time_us, *peers_us = timer.medians_us(operations)
        (dependent_us,) = timer.medians_us([ours], programmatic=True)
        name, peer_us = f"kernel/decode_attention/{case.name}", min(peers_us, default=None)
        report.add(name, "time", time_us, "us", peer="torch flash attention" if peers_us else "", peer_value=peer_us)
        report.add(name, "time_dependent", dependent_us, "us")
        report.add(name, "bandwidth", moved / time_us / 1e3, "GB/s", peer="read", peer_value=limit)
        del ours, operations
    report.finish(save=wanted.save)


if __name__ == "__main__":
    main()
