"""Encoders' attention without a GPU: its plan, and its CUDA source on fibers."""

import ctypes
import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.gpu.tolerance import assert_fair, poisoned
from tests.unit.kernels.emulation.build import build_encoder, compiler, pointer
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from headrace.errors import KernelError
from headrace.kernels.encoder_attention import HEAD_DIMS, QUERIES, choose_block, most_items, plan_items
from headrace.kernels.prefill_shape import Block

# The most shared memory that a block may have: sm_86 and sm_89, sm_80, sm_90.
SHARED_BYTES = {"sm_86": 101376, "sm_80": 166912, "sm_90a": 232448}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=20), spare=st.integers(0, 5))
def test_items_cover_every_query_once(lengths: list[int], spare: int) -> None:
    starts = [0, *accumulate(lengths)]
    most = most_items(len(lengths), sum(lengths))
    items = plan_items(lengths, most + spare)
    covered: list[int] = []
    for first_token, length, first_query, _ in items.tolist():
        if length:
            assert (first_token, length) in zip(starts, lengths, strict=False)
            covered += range(first_token + first_query, first_token + min(first_query + QUERIES, length))
    assert sorted(covered) == list(range(sum(lengths)))
    assert plan_items(lengths).tolist() == items[: len(plan_items(lengths))].tolist()
    taken = items[:, 1].tolist()
    assert taken == sorted(taken, reverse=True)


def test_more_items_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(KernelError, match="3 items, not 2"):
        plan_items([1, 1, 1], 2)


@pytest.mark.parametrize("arch", SHARED_BYTES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_head_fits_every_gpu(head_dim: int, dtype: torch.dtype, arch: str) -> None:
    block = choose_block(dtype, head_dim, SHARED_BYTES[arch], arch)
    assert block.rows == QUERIES
    blocks = block.least_blocks if arch == "sm_90a" and dtype != torch.float32 else 1
    assert blocks * (block.shared_bytes(dtype, head_dim) + 1024) <= SHARED_BYTES[arch] + 1024


def attended(qkv: Tensor, bias: Tensor | None, lengths: Sequence[int], num_heads: int) -> Tensor:
    """What torch makes of it, row by row."""
    qkv = qkv if bias is None else qkv + bias
    rows = []
    for row in torch.split_with_sizes(qkv, list(lengths)):
        heads = row.view(row.shape[0], 3, num_heads, -1).permute(1, 2, 0, 3)
        rows.append(scaled_dot_product_attention(*heads).transpose(0, 1).flatten(1))
    return torch.cat(rows)


# fp32 on its own cores, tensor cores by single warps, by four.
VARIANTS = [
    (torch.float32, 32, Block(QUERIES, 32)),
    (torch.float32, 72, Block(QUERIES, 16)),
    (torch.float16, 64, Block(QUERIES, 64)),
    (torch.bfloat16, 80, Block(QUERIES, 32)),
    (torch.float16, 32, Block(QUERIES, 64, 6, warpgroups=True)),
    (torch.bfloat16, 64, Block(QUERIES, 64, 5, warpgroups=True)),
    (torch.float16, 96, Block(QUERIES, 64, 3, warpgroups=True)),
    (torch.float16, 24, Block(QUERIES, 64)),
    (torch.bfloat16, 40, Block(QUERIES, 64, 5, warpgroups=True)),
]


@pytest.mark.parametrize(("dtype", "head_dim", "block"), VARIANTS, ids=str)
def test_the_source_computes_what_torch_computes(
    dtype: torch.dtype, head_dim: int, block: Block, tmp_path: Path
) -> None:
    if compiler() is None:
        pytest.fail("the kernels' sources are run on this machine's CPU, which takes g++: install it")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    filled = next(size for size in HEAD_DIMS if head_dim <= size)
    library, num_heads = build_encoder(block, dtype, head_dim, filled, tmp_path), 2
    for lengths, biased in (((1, 70, 3), True), ((130,), False)):
        # Behind the last row, what no row may see.
        qkv = torch.full((sum(lengths) + 3, 3 * num_heads * head_dim), torch.nan, dtype=dtype)
        qkv[: sum(lengths)] = torch.randn(sum(lengths), qkv.shape[1]).to(dtype)
        bias = torch.randn(qkv.shape[1]).to(dtype) if biased else None
        items = torch.from_numpy(plan_items(lengths, most_items(len(lengths), sum(lengths)) + 1))
        out = poisoned(torch.empty(sum(lengths), num_heads * head_dim, dtype=dtype))
        library.emulate_attention(
            len(items) * num_heads,
            *(pointer(out), pointer(qkv), None if bias is None else pointer(bias), pointer(items), num_heads),
            ctypes.c_float(head_dim**-0.5 * math.log2(math.e)),
        )
        seen, exact = qkv[: sum(lengths)], None if bias is None else bias.double()
        assert_fair(out, attended(seen.double(), exact, lengths, num_heads), attended(seen, bias, lengths, num_heads))
