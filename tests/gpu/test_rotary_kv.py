import pytest
import torch
from tests.gpu.tolerance import assert_fair, poisoned

from headrace.kernels import reference_fused as reference
from headrace.kernels.heads import HeadNorm
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.rotary import Rotary, rotary_table
from headrace.kernels.rotary_kv import rotary_kv

HEADS, KV_HEADS, PAGE_SIZE, MAX_PAGES = 6, 2, 16, 5


def memory(dtype: torch.dtype, device: torch.device, num_rows: int, head_dim: int) -> KVPages:
    """Pages of keys and values side by side, in a shuffled order, full of NaN."""
    pages = torch.full((num_rows * MAX_PAGES, 2, KV_HEADS, PAGE_SIZE, head_dim), torch.nan, dtype=dtype, device=device)
    table = torch.randperm(num_rows * MAX_PAGES, device=device).to(torch.int32).view(num_rows, MAX_PAGES)
    return KVPages(pages[:, 0], pages[:, 1], table)


def copied(pages: KVPages, dtype: torch.dtype) -> KVPages:
    return KVPages(pages.keys.to(dtype, copy=True), pages.values.to(dtype, copy=True), pages.page_table)


def in_dtype(norm: HeadNorm | None, dtype: torch.dtype) -> HeadNorm | None:
    return None if norm is None else HeadNorm(norm.query.to(dtype), norm.key.to(dtype), norm.eps)


@pytest.mark.parametrize(
    ("head_dim", "rotary_dim"), [(64, 64), (80, 80), (96, 96), (128, 128), (256, 256), (80, 32), (96, 24), (128, 0)]
)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 61, 1200])
def test_heads_are_normed_rotated_and_written(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    rotary_dim: int,
    interleaved: bool,
    normed: bool,
    num_tokens: int,
) -> None:
    num_rows = -(-num_tokens // 60)
    qkv = torch.randn(num_tokens, (HEADS + 2 * KV_HEADS) * head_dim, device=device, dtype=dtype)
    rows = torch.arange(num_tokens, device=device, dtype=torch.int32) // 60
    positions = (torch.arange(num_tokens, device=device) % 60 + 7).flip(0).contiguous()
    rows = rows.flip(0).contiguous()
    positions[num_tokens // 2] = -1 if num_tokens > 1 else 3
    inv_freq = 1e4 ** -(torch.arange(0, max(rotary_dim, 2), 2, device=device) / max(rotary_dim, 2))
    rotary = rotary_table(positions, inv_freq, interleaved=interleaved) if rotary_dim else None
    weights = torch.randn(2, head_dim, device=device, dtype=dtype)
    norm = HeadNorm(weights[0], weights[1], 1e-6) if normed else None
    actual = memory(dtype, device, num_rows, head_dim)
    truth, peer = copied(actual, torch.float64), copied(actual, dtype)
    query = poisoned(qkv.new_empty(num_tokens, HEADS, head_dim))
    rotary_kv(qkv, positions, actual, num_heads=HEADS, rotary=rotary, norm=norm, rows=rows, out=query)
    expected = [
        reference.rotary_kv(
            qkv.to(pages.keys.dtype),
            positions,
            pages,
            num_heads=HEADS,
            rotary=rotary,
            norm=in_dtype(norm, pages.keys.dtype),
            rows=rows,
        )
        for pages in (truth, peer)
    ]
    assert_fair(query, *expected)
    for written, right, own in ((actual.keys, truth.keys, peer.keys), (actual.values, truth.values, peer.values)):
        assert torch.equal(written.isnan(), right.isnan())
        held = ~right.isnan()
        assert_fair(written[held], right[held], own[held])
    assert torch.equal(actual.values.nan_to_num(), peer.values.nan_to_num())


def test_a_token_is_its_own_row_where_none_are_named(device: torch.device) -> None:
    actual = memory(torch.float32, device, 9, 64)
    expected = copied(actual, torch.float32)
    qkv = torch.randn(9, (HEADS + 2 * KV_HEADS) * 64, device=device)
    positions = torch.randint(0, MAX_PAGES * PAGE_SIZE, (9,), device=device, dtype=torch.int32)
    rotary_kv(qkv, positions, actual, num_heads=HEADS)
    reference.rotary_kv(qkv, positions, expected, num_heads=HEADS)
    assert torch.equal(actual.keys.nan_to_num(), expected.keys.nan_to_num())


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
def test_angles_are_right_far_out(device: torch.device, index_type: torch.dtype) -> None:
    positions = torch.tensor([0, 1, 777, 131072, 1000003], device=device, dtype=index_type)
    inv_freq = 5e5 ** -(torch.arange(0, 128, 2, device=device) / 128)
    actual, expected = (
        rotary_table(positions, inv_freq, scale=1.1),
        reference.rotary_table(positions, inv_freq, scale=1.1),
    )
    assert isinstance(actual, Rotary)
    assert torch.allclose(actual.cosines, expected.cosines, atol=1e-6)
    assert torch.allclose(actual.sines, expected.sines, atol=1e-6)


def test_queries_may_stay_where_they_are_and_angles_go_where_they_are_told(
    device: torch.device, dtype: torch.dtype
) -> None:
    qkv = torch.randn(33, (HEADS + 2 * KV_HEADS) * 64, device=device, dtype=dtype)
    positions = torch.arange(33, device=device, dtype=torch.int32)
    rows = torch.zeros(33, device=device, dtype=torch.int32)
    inv_freq = 1e4 ** -(torch.arange(0, 64, 2, device=device) / 64)
    room = torch.full((2, 40, 32), torch.nan, device=device)
    apart = rotary_table(positions, inv_freq)
    rotary = rotary_table(positions, inv_freq, out=(room[0, :33], room[1, :33]))
    assert torch.equal(rotary.cosines, apart.cosines)
    assert torch.equal(rotary.sines, apart.sines)
    assert room[:, 33:].isnan().all()
    weights = torch.randn(2, 64, device=device, dtype=dtype)
    norm = HeadNorm(weights[0], weights[1], 1e-6)
    first, second = (memory(dtype, device, 1, 64) for _ in range(2))
    second = KVPages(second.keys, second.values, first.page_table)
    expected = rotary_kv(qkv, positions, first, num_heads=HEADS, rotary=rotary, norm=norm, rows=rows)
    kept = qkv.clone()
    query = qkv.view(33, -1, 64)[:, :HEADS]
    rotary_kv(qkv, positions, second, num_heads=HEADS, rotary=rotary, norm=norm, rows=rows, out=query)
    assert torch.equal(query, expected)
    assert torch.equal(qkv[:, HEADS * 64 :], kept[:, HEADS * 64 :])
    assert torch.equal(first.keys.nan_to_num(), second.keys.nan_to_num())
