from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tests.gpu.tolerance import assert_fair, poisoned
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels import reference_attention as reference
from headrace.kernels.decode_attention import DecodeAttention
from headrace.kernels.decode_shape import DecodeShape, Ring
from headrace.kernels.device import open_device
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.launch import is_ours
from headrace.kernels.programmatic import make_programmatic
from headrace.kernels.rotary_kv import rotary_kv

NUM_KV_HEADS = 2
# One key, page borders, padding, long rows beside short ones; more rows than a share has.
LENGTHS: list[list[int]] = [
    [1],
    [0, 0],
    [1, 15, 16, 17, 0, 31, 32, 33, 300, 0],
    [5000, 1, 0, 47, 48, 49],
    [1 + 7 * row % 90 for row in range(300)],
]


def paged(shape: DecodeShape, lengths: Sequence[int], device: torch.device) -> tuple[Tensor, KVPages, Tensor]:
    """Queries, pages in any order, lengths. What no row may see is NaN, and what no row may look up is out of bounds.

    Keys and values are views of one memory, and queries a slice of wider rows.
    """
    counts = [-(-length // shape.page_size) for length in lengths]
    memory = torch.randn(
        sum(counts) + 2, 2, shape.num_kv_heads, shape.page_size, shape.head_dim, device=device, dtype=shape.dtype
    )
    order = torch.randperm(memory.shape[0], dtype=torch.int32)
    table = torch.full((len(lengths), shape.max_pages), 2**30, dtype=torch.int32)
    memory[order[sum(counts) :]] = torch.nan
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        begin = sum(counts[:row])
        table[row, :count] = order[begin : begin + count]
        if length % shape.page_size:
            memory[table[row, count - 1], :, :, length % shape.page_size :] = torch.nan
    wide = torch.randn(len(lengths), shape.num_heads + 2, shape.head_dim, device=device, dtype=shape.dtype)
    pages = KVPages(memory[:, 0], memory[:, 1], table.to(device))
    return wide[:, : shape.num_heads], pages, torch.tensor(lengths, dtype=torch.int32, device=device)


def shaped(lengths: Sequence[int], dtype: torch.dtype, head_dim: int, group: int, page_size: int = 16) -> DecodeShape:
    max_pages = max(1, -(-max(lengths) // page_size)) + 1
    return DecodeShape(NUM_KV_HEADS, group, head_dim, dtype, len(lengths) + 1, max_pages, page_size)


def attend(attention: DecodeAttention, query: Tensor, pages: KVPages, lengths: Tensor) -> Tensor:
    out = poisoned(query.contiguous())
    attention.plan(lengths)
    attention.run(out, query, pages, lengths)
    return out


def check(shape: DecodeShape, lengths: Sequence[int], device: torch.device, ring: Ring | None = None) -> None:
    query, pages, on_device = paged(shape, lengths, device)
    attention = DecodeAttention(shape, device, ring=ring)
    exact = KVPages(pages.keys.double(), pages.values.double(), pages.page_table)
    truth = reference.decode_attention(query.double(), exact, on_device, window=shape.window)
    # fp32 with fp64 sums is no peer of fp32: torch computes in its own dtype.
    peer = reference.decode_attention(query, pages, on_device, window=shape.window)
    first = attend(attention, query, pages, on_device)
    assert_fair(first, truth, peer)
    # Tickets are as they were, and nothing depends on who came last.
    assert torch.equal(first, attend(attention, query, pages, on_device))


@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: f"{len(lengths)}rows")
@pytest.mark.parametrize(("head_dim", "group"), [(64, 1), (80, 5), (96, 8), (128, 4), (128, 16), (256, 2)])
def test_attention_errs_as_little_as_torch(
    device: torch.device, dtype: torch.dtype, head_dim: int, group: int, lengths: list[int]
) -> None:
    check(shaped(lengths, dtype, head_dim, group), lengths, device)


@pytest.mark.parametrize("group", range(1, 17))
def test_any_group_shares_a_head(device: torch.device, group: int) -> None:
    check(shaped([700, 3], torch.float16, 64, group), [700, 3], device)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_the_largest_group_fits_every_head(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    check(shaped([333, 16, 0, 1], dtype, head_dim, 16), [333, 16, 0, 1], device)


@pytest.mark.parametrize("page_size", [16, 48, 64, 256])
@pytest.mark.parametrize("window", [None, 1, 16, 37, 512])
@pytest.mark.parametrize("segment_tokens", [None, 16, 64, 512])
def test_pages_windows_and_segments_of_any_size(
    device: torch.device, page_size: int, window: int | None, segment_tokens: int | None
) -> None:
    lengths = [1, 16, 17, 0, 1000, 37, 38, 2049]
    shape = shaped(lengths, torch.bfloat16, 128, 4, page_size)
    check(replace(shape, window=window, segment_tokens=segment_tokens), lengths, device)


@pytest.mark.parametrize("ring", [Ring(1, 2, 1, 0), Ring(2, 3, 4), Ring(4, 2, 4, 0), Ring(8, 2, 64)])
def test_results_are_right_however_a_block_reads(device: torch.device, ring: Ring) -> None:
    lengths = [4000, 1, 250, 16, 0, 65]
    check(shaped(lengths, torch.bfloat16, 128, 4), lengths, device, ring)


@pytest.mark.parametrize(("head_dim", "group"), [(64, 7), (96, 8), (128, 4), (128, 16), (256, 4)])
@pytest.mark.parametrize("lengths", [[30000, 0, 3], [1500] * 70], ids=["many_parts", "equal_rows"])
def test_rows_are_put_together_from_many_parts_and_from_equal_ones(
    device: torch.device, head_dim: int, group: int, lengths: list[int]
) -> None:
    check(shaped(lengths, torch.bfloat16, head_dim, group), lengths, device)


def test_with_segments_a_row_has_the_same_bits_alone_and_among_others(device: torch.device, dtype: torch.dtype) -> None:
    lengths = [3000, 1, 511, 512, 513, 0, 77]
    shape = replace(shaped(lengths, dtype, 128, 4), segment_tokens=512)
    query, pages, on_device = paged(shape, lengths, device)
    attention = DecodeAttention(shape, device)
    together = attend(attention, query, pages, on_device)
    for row in range(len(lengths)):
        own = KVPages(pages.keys, pages.values, pages.page_table[row : row + 1])
        alone = attend(attention, query[row : row + 1], own, on_device[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_a_captured_graph_serves_rows_of_any_length(device: torch.device) -> None:
    # Given a step's graph, captured while rows are short
    lengths = [2000, 16, 900, 33]
    shape = shaped(lengths, torch.bfloat16, 128, 4)
    query, pages, on_device = paged(shape, lengths, device)
    attention = DecodeAttention(shape, device)
    now, out = torch.ones_like(on_device), poisoned(query.contiguous())
    stream = open_device(device.index).new_stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        attention.plan(now)
        attention.run(out, query, pages, now)
    # When they have grown and shrunk
    for grown in (lengths, [1, 0, 17, 5], lengths):
        now.copy_(torch.tensor(grown, dtype=torch.int32))
        graph.replay()
        # I expect what a fresh launch gives
        assert torch.equal(out, attend(DecodeAttention(shape, device), query, pages, now))


def test_old_keys_are_read_early_and_new_ones_in_time(device: torch.device) -> None:
    # Given a graph in which each attention may begin before the kernel that writes its rows' newest keys has ended
    lengths = [1, 16, 17, 300, 5000, 33]
    shape = shaped(lengths, torch.bfloat16, 128, 4)
    _, pages, on_device = paged(shape, lengths, device)
    positions, attention = on_device - 1, DecodeAttention(shape, device)
    width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    steps = [torch.randn(len(lengths), width, device=device, dtype=shape.dtype) for _ in range(30)]
    query = torch.empty(len(lengths), shape.num_heads, shape.head_dim, device=device, dtype=shape.dtype)
    early, late = ([torch.empty_like(query) for _ in steps] for _ in range(2))

    def write_and_attend(qkv: Tensor, out: Tensor, *, old_is_settled: bool) -> None:
        rotary_kv(qkv, positions, pages, num_heads=shape.num_heads, out=query)
        attention.run(out, query, pages, on_device, old_is_settled=old_is_settled)

    attention.plan(on_device)
    for qkv, out in zip(steps, late, strict=True):
        write_and_attend(qkv, out, old_is_settled=False)
    torch.cuda.synchronize()
    assert not torch.equal(late[0], late[1])
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph, stream=open_device(device.index).new_stream()):
        for qkv, out in zip(steps, early, strict=True):
            write_and_attend(qkv, out, old_is_settled=True)
    make_programmatic(graph.raw_cuda_graph(), is_ours)
    graph.instantiate()
    # When it runs, again and again
    for _ in range(10):
        for out in early:
            out.fill_(torch.nan)
        graph.replay()
        # I expect the bits of launches that follow each other
        assert all(torch.equal(a, b) for a, b in zip(early, late, strict=True))


def test_scores_may_be_scaled(device: torch.device) -> None:
    shape = shaped([100, 20], torch.float32, 64, 2)
    query, pages, lengths = paged(shape, [100, 20], device)
    attention, out = DecodeAttention(shape, device), poisoned(query.contiguous())
    attention.plan(lengths)
    attention.run(out, query, pages, lengths, scale=0.5)
    exact = KVPages(pages.keys.double(), pages.values.double(), pages.page_table)
    truth = reference.decode_attention(query.double(), exact, lengths, scale=0.5)
    assert_fair(out, truth, reference.decode_attention(query, pages, lengths, scale=0.5))


def test_the_workspace_may_be_given_and_need_not_be_clean(device: torch.device) -> None:
    shape = shaped([1000, 20], torch.bfloat16, 128, 4)
    query, pages, lengths = paged(shape, [1000, 20], device)
    size = DecodeAttention.workspace_bytes(shape, device)
    given = torch.full((size,), 255, dtype=torch.uint8, device=device)
    result = attend(DecodeAttention(shape, device, given), query, pages, lengths)
    assert torch.equal(result, attend(DecodeAttention(shape, device), query, pages, lengths))
    with pytest.raises(KernelError, match="workspace"):
        DecodeAttention(shape, device, given[16:])


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    shape = shaped([100, 20], torch.bfloat16, 128, 4)
    query, pages, lengths = paged(shape, [100, 20], device)
    attention, out = DecodeAttention(shape, device), query.contiguous()
    with pytest.raises(KernelError, match="head"):
        replace(shape, head_dim=72)
    with pytest.raises(KernelError, match="page"):
        replace(shape, page_size=8)
    with pytest.raises(KernelError, match="lengths"):
        attention.plan(lengths.long())
    with pytest.raises(KernelError, match="room"):
        attention.plan(lengths.repeat(9))
    with pytest.raises(KernelError, match="query"):
        attention.run(out, query.float(), pages, lengths)
    with pytest.raises(KernelError, match="page_table"):
        attention.run(out, query, replace(pages, page_table=pages.page_table[:, 1:]), lengths)
    with pytest.raises(KernelError, match="values"):
        attention.run(out, query, replace(pages, values=pages.values.contiguous()), lengths)
