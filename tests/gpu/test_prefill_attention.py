from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import pytest
import torch
from tests.gpu.tolerance import assert_fair, poisoned
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels import reference_attention as reference
from headrace.kernels.device import open_device
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.prefill_attention import PrefillAttention
from headrace.kernels.prefill_shape import Block, PrefillShape
from headrace.kernels.rotary import rotary_table
from headrace.kernels.rotary_kv import rotary_kv

NUM_KV_HEADS = 2
# Pairs of a row's queries and keys. Whole prompts, chunks, single queries, padding; borders of pages, tiles and blocks.
ROWS: list[list[tuple[int, int]]] = [
    [(1, 1)],
    [(1, 0), (7, 0)],
    [(5, 5), (1, 300), (0, 0), (16, 16), (17, 33), (3, 0), (64, 64), (65, 130), (1, 17)],
    [(31, 63), (32, 64), (33, 65), (63, 127), (64, 128), (65, 129), (128, 256), (129, 255)],
    [(700, 700), (1, 2000), (130, 1500)],
    [(1 + row % 3, 1 + row % 3 + 7 * row % 90) for row in range(300)],
]


@dataclass(frozen=True, slots=True)
class Step:
    """A step's tensors; ``query`` is a slice of wider tokens, keys and values are views of one memory."""

    query: Tensor
    pages: KVPages
    query_starts: Tensor
    lengths: Tensor


def paged(shape: PrefillShape, rows: Sequence[tuple[int, int]], device: torch.device) -> Step:
    """A step in pages of any order. What no row may see is NaN, and what no row may look up is out of bounds."""
    counts = [-(-length // shape.page_size) for _, length in rows]
    memory = torch.randn(
        sum(counts) + 2, 2, shape.num_kv_heads, shape.page_size, shape.head_dim, device=device, dtype=shape.dtype
    )
    order = torch.randperm(memory.shape[0], dtype=torch.int32)
    table = torch.full((len(rows), max(counts) + 1), 2**30, dtype=torch.int32)
    memory[order[sum(counts) :]] = torch.nan
    for row, ((_, length), count) in enumerate(zip(rows, counts, strict=True)):
        begin = sum(counts[:row])
        table[row, :count] = order[begin : begin + count]
        if length % shape.page_size:
            memory[table[row, count - 1], :, :, length % shape.page_size :] = torch.nan
    starts = [0, *accumulate(queries for queries, _ in rows)]
    wide = torch.randn(starts[-1], shape.num_heads + 2, shape.head_dim, device=device, dtype=shape.dtype)
    return Step(
        wide[:, : shape.num_heads],
        KVPages(memory[:, 0], memory[:, 1], table.to(device)),
        torch.tensor(starts, dtype=torch.int32, device=device),
        torch.tensor([length for _, length in rows], dtype=torch.int32, device=device),
    )


def shaped(dtype: torch.dtype, head_dim: int, group: int, page_size: int = 16) -> PrefillShape:
    return PrefillShape(NUM_KV_HEADS, group, head_dim, dtype, max_rows=301, max_tokens=4096, page_size=page_size)


def attend(attention: PrefillAttention, step: Step, *, window: int | None = None) -> Tensor:
    out = poisoned(step.query.contiguous())
    attention.plan(step.query_starts, step.lengths, step.query.shape[0])
    attention.run(out, step.query, step.pages, window=window)
    return out


def check(
    shape: PrefillShape,
    rows: Sequence[tuple[int, int]],
    device: torch.device,
    *,
    window: int | None = None,
    block: Block | None = None,
) -> None:
    step = paged(shape, rows, device)
    attention = PrefillAttention(shape, device, block=block)
    exact = KVPages(step.pages.keys.double(), step.pages.values.double(), step.pages.page_table)
    rest = (step.query_starts, step.lengths)
    truth = reference.prefill_attention(step.query.double(), exact, *rest, window=window)
    peer = reference.prefill_attention(step.query, step.pages, *rest, window=window)
    first = attend(attention, step, window=window)
    assert_fair(first, truth, peer)
    # Nothing depends on which block comes first.
    assert torch.equal(first, attend(attention, step, window=window))


@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: f"{len(rows)}rows")
@pytest.mark.parametrize(("head_dim", "group"), [(64, 1), (80, 5), (96, 8), (128, 4), (128, 7), (256, 2)])
def test_attention_errs_as_little_as_torch(
    device: torch.device, dtype: torch.dtype, head_dim: int, group: int, rows: list[tuple[int, int]]
) -> None:
    check(shaped(dtype, head_dim, group), rows, device)


@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 8, 16, 71, 128])
def test_any_group_shares_a_head(device: torch.device, dtype: torch.dtype, group: int) -> None:
    check(shaped(dtype, 64, group), [(70, 200), (3, 3), (1, 65)], device)


@pytest.mark.parametrize("page_size", [16, 48, 64, 256])
@pytest.mark.parametrize("window", [None, 1, 16, 37, 64, 65, 512])
def test_pages_and_windows_of_any_size(
    device: torch.device, dtype: torch.dtype, page_size: int, window: int | None
) -> None:
    rows = [(1, 1), (16, 17), (3, 0), (200, 1000), (1, 37), (38, 38), (40, 2049)]
    check(shaped(dtype, 128, 4, page_size), rows, device, window=window)


def test_pages_before_a_window_are_not_looked_up(device: torch.device, dtype: torch.dtype) -> None:
    # Given rows whose first pages have been given back
    shape, rows, window = shaped(dtype, 128, 4), [(40, 200), (1, 130), (5, 64)], 33
    step = paged(shape, rows, device)
    expected = attend(PrefillAttention(shape, device), step, window=window)
    for row, (queries, length) in enumerate(rows):
        step.pages.page_table[row, : max(length - queries + 1 - window, 0) // shape.page_size] = 2**30
    # When attention has no use for them, I expect it not to miss them
    assert torch.equal(attend(PrefillAttention(shape, device), step, window=window), expected)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("keys", [32, 64])
def test_results_are_right_with_tiles_of_any_length(device: torch.device, head_dim: int, keys: int) -> None:
    block = Block(128 if head_dim <= 128 else 64, keys)
    check(shaped(torch.bfloat16, head_dim, 4), [(100, 300), (1, 65), (64, 64)], device, block=block)


@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: f"{len(rows)}rows")
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_hopper_multiplies_in_groups_of_warps(
    device: torch.device, dtype: torch.dtype, head_dim: int, rows: list[tuple[int, int]]
) -> None:
    if torch.cuda.get_device_capability(device) != (9, 0):
        pytest.skip("the GPU is no Hopper")
    least_blocks = 2 if head_dim <= 128 else 1
    for block in (Block(128, 64, least_blocks, warpgroups=True), Block(64, 64, least_blocks, warpgroups=True)):
        check(shaped(dtype, head_dim, 4), rows, device, block=block)
        check(shaped(dtype, head_dim, 1, page_size=48), rows, device, window=100, block=block)


def test_a_token_has_the_same_bits_alone_and_among_others(device: torch.device, dtype: torch.dtype) -> None:
    rows = [(300, 300), (1, 511), (40, 513), (3, 0), (77, 77)]
    shape = shaped(dtype, 128, 4)
    step = paged(shape, rows, device)
    attention = PrefillAttention(shape, device)
    together, starts = attend(attention, step), step.query_starts.tolist()
    for row, (queries, _) in enumerate(rows):
        own = Step(
            step.query[starts[row] : starts[row + 1]],
            KVPages(step.pages.keys, step.pages.values, step.pages.page_table[row : row + 1]),
            torch.tensor([0, queries], dtype=torch.int32, device=device),
            step.lengths[row : row + 1],
        )
        assert torch.equal(attend(attention, own), together[starts[row] : starts[row + 1]])


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("chunk", [1, 37, 64, 200])
def test_a_token_has_the_same_bits_however_its_prompt_was_cut(
    device: torch.device, dtype: torch.dtype, chunk: int, window: int | None
) -> None:
    shape, num_tokens = shaped(dtype, 128, 3), 333
    step = paged(shape, [(num_tokens, num_tokens)], device)
    attention = PrefillAttention(shape, device)
    whole = attend(attention, step, window=window)
    for begin in range(0, num_tokens, chunk):
        end = min(begin + chunk, num_tokens)
        part = Step(
            step.query[begin:end],
            step.pages,
            torch.tensor([0, end - begin], dtype=torch.int32, device=device),
            torch.tensor([end], dtype=torch.int32, device=device),
        )
        assert torch.equal(attend(attention, part, window=window), whole[begin:end])


def test_scores_that_are_far_apart_neither_overflow_nor_vanish(device: torch.device, dtype: torch.dtype) -> None:
    # Given scores of which some are 2 ** 200 times as likely as others
    shape = shaped(dtype, 64, 2)
    step = paged(shape, [(200, 400), (64, 64)], device)
    steep = torch.arange(shape.page_size, device=device) * 4
    step.pages.keys.mul_(steep.to(dtype)[:, None])
    exact = KVPages(step.pages.keys.double(), step.pages.values.double(), step.pages.page_table)
    rest = (step.query_starts, step.lengths)
    truth = reference.prefill_attention(step.query.double(), exact, *rest)
    result = attend(PrefillAttention(shape, device), step)
    assert_fair(result, truth, reference.prefill_attention(step.query, step.pages, *rest))


def test_tokens_behind_the_last_row_are_padding(device: torch.device, dtype: torch.dtype) -> None:
    shape = shaped(dtype, 128, 4)
    step = paged(shape, [(40, 100), (60, 60)], device)
    fewer = replace(step, query_starts=torch.tensor([0, 40, 50], dtype=torch.int32, device=device))
    fewer.lengths[1] = 50
    out = attend(PrefillAttention(shape, device), fewer)
    assert torch.equal(out[50:], torch.zeros_like(out[50:]))
    assert torch.equal(out[:40], attend(PrefillAttention(shape, device), step)[:40])
    assert out[:50].isfinite().all()
    assert (out[:50] != 0).any(dim=-1).all()


def test_blocks_may_be_spared_for_rows_without_queries(device: torch.device, dtype: torch.dtype) -> None:
    shape = shaped(dtype, 128, 4)
    step = paged(shape, [(0, 5)] * 100 + [(40, 100), (0, 3), (1, 60), (0, 0)] + [(0, 1)] * 100, device)
    attention, out = PrefillAttention(shape, device), poisoned(step.query.contiguous())
    attention.plan(step.query_starts, step.lengths, 41, most_chunks=2)
    attention.run(out, step.query, step.pages)
    assert torch.equal(out, attend(PrefillAttention(shape, device), step))


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("group", [4, 71])
def test_rows_last_queries_have_the_same_bits_alone(
    device: torch.device, dtype: torch.dtype, group: int, window: int | None
) -> None:
    # Given rows with many queries, with one, with none, padding between them and behind the last one
    shape, rows = shaped(dtype, 128, group), [(300, 300), (0, 0), (1, 511), (40, 1513), (0, 9), (77, 77), (6, 0)]
    step = paged(shape, rows, device)
    attention, all_seen = PrefillAttention(shape, device), attend(PrefillAttention(shape, device), step, window=window)
    out = poisoned(step.query.contiguous())
    untouched = out.clone()
    # When each row's last one alone attends
    attention.plan(step.query_starts, step.lengths, step.query.shape[0], most_chunks=5, only_last=True)
    attention.run(out, step.query, step.pages, window=window)
    # I expect what it sees among the others, and nothing in their places
    last = torch.tensor([299, 300, 340, 417, 423], device=device)
    assert torch.equal(out[last], all_seen[last])
    others = torch.ones(len(out), dtype=torch.bool, device=device).index_fill_(0, last, False)
    assert torch.equal(out[others].isnan(), untouched[others].isnan())
    assert out[others].isnan().all()


@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_blocks_of_half_the_size_give_the_same_bits(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    # Given a prompt that fills the GPU, and a part of it that does not
    shape = PrefillShape(8, 4, head_dim, dtype, max_rows=1, max_tokens=4096)
    step = paged(shape, [(4096, 4096)], device)
    few, attention = 70, PrefillAttention(shape, device)
    whole = attend(attention, step)
    part = replace(step, query=step.query[-few:], query_starts=torch.tensor([0, few], dtype=torch.int32, device=device))
    # When the part is computed by smaller blocks, I expect the same
    assert torch.equal(attend(attention, part), whole[-few:])


def test_a_captured_graph_serves_rows_cut_otherwise(device: torch.device) -> None:
    # Given a step's graph, captured with the tokens in one row
    shape = shaped(torch.bfloat16, 128, 4)
    step = paged(shape, [(90, 200), (60, 60), (50, 300)], device)
    attention = PrefillAttention(shape, device)
    starts, lengths = torch.tensor([0, 200, 200, 200], device=device), torch.tensor([200, 0, 0], device=device)
    now = replace(step, query_starts=starts.to(torch.int32), lengths=lengths.to(torch.int32))
    out = poisoned(step.query.contiguous())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=open_device(device.index).new_stream()):
        attention.plan(now.query_starts, now.lengths, 200)
        attention.run(out, now.query, now.pages)
    # When they are cut otherwise
    for cut, keys in (
        ([0, 90, 150, 200], [200, 60, 300]),
        ([0, 1, 1, 190], [77, 0, 200]),
        ([0, 3, 60, 61], [3, 60, 9]),
    ):
        now.query_starts.copy_(torch.tensor(cut))
        now.lengths.copy_(torch.tensor(keys))
        out.fill_(torch.nan)
        graph.replay()
        # I expect what a fresh launch gives
        assert torch.equal(out, attend(PrefillAttention(shape, device), now))


def test_scores_may_be_scaled(device: torch.device, dtype: torch.dtype) -> None:
    shape = shaped(dtype, 64, 2)
    step = paged(shape, [(100, 120), (20, 20)], device)
    attention, out = PrefillAttention(shape, device), poisoned(step.query.contiguous())
    attention.plan(step.query_starts, step.lengths, 120)
    attention.run(out, step.query, step.pages, scale=0.5)
    exact = KVPages(step.pages.keys.double(), step.pages.values.double(), step.pages.page_table)
    rest = (step.query_starts, step.lengths)
    truth = reference.prefill_attention(step.query.double(), exact, *rest, scale=0.5)
    assert_fair(out, truth, reference.prefill_attention(step.query, step.pages, *rest, scale=0.5))


def test_the_workspace_may_be_given_and_need_not_be_clean(device: torch.device) -> None:
    shape = shaped(torch.bfloat16, 128, 4)
    step = paged(shape, [(100, 1000), (20, 20)], device)
    size = PrefillAttention.workspace_bytes(shape, device)
    given = torch.full((size,), 255, dtype=torch.uint8, device=device)
    result = attend(PrefillAttention(shape, device, given), step)
    assert torch.equal(result, attend(PrefillAttention(shape, device), step))
    with pytest.raises(KernelError, match="workspace"):
        PrefillAttention(shape, device, given[16:])


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    shape = shaped(torch.bfloat16, 128, 4)
    step = paged(shape, [(100, 100), (20, 50)], device)
    attention, out = PrefillAttention(shape, device), step.query.contiguous()
    with pytest.raises(KernelError, match="plan first"):
        attention.run(out, step.query, step.pages)
    attention.plan(step.query_starts, step.lengths, 120)
    with pytest.raises(KernelError, match="plan first"):
        attention.run(out[:60], step.query[:60], step.pages)
    with pytest.raises(KernelError, match="lengths"):
        attention.plan(step.query_starts, step.lengths.long(), 120)
    with pytest.raises(KernelError, match="query_starts"):
        attention.plan(step.query_starts[1:], step.lengths, 120)
    with pytest.raises(KernelError, match="room"):
        attention.plan(step.query_starts, step.lengths, 5000)
    with pytest.raises(KernelError, match="query"):
        attention.run(out, step.query.float(), step.pages)
    with pytest.raises(KernelError, match="out"):
        attention.run(out[1:], step.query, step.pages)
    with pytest.raises(KernelError, match="window"):
        attention.run(out, step.query, step.pages, window=0)
    with pytest.raises(KernelError, match="scaled"):
        attention.run(out, step.query, step.pages, scale=-1.0)
    with pytest.raises(KernelError, match="pages"):
        attention.run(
            out, step.query, replace(step.pages, keys=step.pages.keys[:, :1], values=step.pages.values[:, :1])
        )


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("num_decoding", [0, 9])
def test_queries_have_the_same_bits_rotated_on_their_way_as_before(
    device: torch.device, dtype: torch.dtype, head_dim: int, num_decoding: int
) -> None:
    rows = [(100, 300), (1, 65), (64, 64), (700, 700)]
    shape = shaped(dtype, head_dim, 4)
    step = paged(shape, rows, device)
    num_tokens = num_decoding + step.query.shape[0]
    wide = torch.randn(num_tokens, (shape.num_heads + 2 * NUM_KV_HEADS) * head_dim, device=device, dtype=dtype)
    positions = torch.randint(0, 5000, (num_tokens,), device=device)
    rotary = rotary_table(positions, 1e4 ** -(torch.arange(0, head_dim, 2, device=device) / head_dim))
    scratch = torch.zeros(5000 // 16 + 1, 2, NUM_KV_HEADS, 16, head_dim, device=device, dtype=dtype)
    table = torch.arange(5000 // 16 + 1, device=device, dtype=torch.int32).expand(num_tokens, -1).contiguous()

    def queries(num_query_tokens: int | None) -> Tensor:
        qkv = wide.clone()
        query = qkv.view(num_tokens, -1, head_dim)[:, : shape.num_heads]
        pages = KVPages(scratch[:, 0], scratch[:, 1], table)
        rotary_kv(
            *(qkv, positions, pages),
            num_heads=shape.num_heads,
            rotary=rotary,
            out=query,
            num_query_tokens=num_query_tokens,
        )
        return query

    before, later = queries(None), queries(num_decoding)
    assert torch.equal(later[:num_decoding], before[:num_decoding])
    original = wide.view(num_tokens, -1, head_dim)[:, : shape.num_heads]
    assert torch.equal(later[num_decoding:], original[num_decoding:])
    expected = attend(PrefillAttention(shape, device), replace(step, query=before[num_decoding:]))
    rotating, out = PrefillAttention(shape, device, rotates=True), poisoned(expected)
    rotating.plan(step.query_starts, step.lengths, step.query.shape[0])
    rotating.run(out, later[num_decoding:], step.pages, rotary=rotary.behind(num_decoding))
    assert torch.equal(out, expected)


def test_angles_are_asked_for_where_attention_rotates_and_nowhere_else(device: torch.device) -> None:
    shape = shaped(torch.bfloat16, 128, 4)
    step = paged(shape, [(7, 7)], device)
    rotary = rotary_table(torch.arange(7, device=device), torch.ones(64, device=device))
    for rotates, angles in ((True, None), (False, rotary), (True, rotary.behind(1))):
        attention = PrefillAttention(shape, device, rotates=rotates)
        attention.plan(step.query_starts, step.lengths, 7)
        with pytest.raises(KernelError, match="angles"):
            attention.run(torch.empty_like(step.query.contiguous()), step.query, step.pages, rotary=angles)
