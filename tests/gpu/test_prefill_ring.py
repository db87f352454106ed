"""Prefill attention by the bulk copy engine, beside the kernel whose bits it promises."""

from dataclasses import replace

import pytest
import torch
from tests.gpu.test_prefill_attention import ROWS, Step, attend, paged, shaped
from tests.gpu.tolerance import assert_fair, poisoned

from headrace.errors import KernelError
from headrace.kernels import reference_attention as reference
from headrace.kernels.device import open_device
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.prefill_attention import PrefillAttention
from headrace.kernels.prefill_ring import LARGE, SMALL, Ring
from headrace.kernels.prefill_shape import Block, PrefillShape
from headrace.kernels.rotary import rotary_table

OTHER = Block(128, 64, warpgroups=True)


@pytest.fixture(autouse=True)
def on_hopper(device: torch.device) -> None:
    if torch.cuda.get_device_capability(device) != (9, 0):
        pytest.skip("the GPU is no Hopper")


@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: f"{len(rows)}rows")
@pytest.mark.parametrize(
    ("group", "page_size", "window"), [(4, 16, None), (1, 48, 100), (7, 16, None), (71, 64, 37), (128, 16, 1)]
)
@pytest.mark.parametrize(
    ("dtype", "ring"),
    [(torch.bfloat16, LARGE), (torch.float16, LARGE), (torch.bfloat16, SMALL)],
    ids=["bf16", "fp16", "bf16_small"],
)
def test_the_ring_gives_the_other_kernels_bits(
    device: torch.device,
    dtype: torch.dtype,
    ring: Ring,
    group: int,
    page_size: int,
    window: int | None,
    rows: list[tuple[int, int]],
) -> None:
    shape = shaped(dtype, 128, group, page_size)
    step = paged(shape, rows, device)
    expected = attend(PrefillAttention(shape, device, block=OTHER), step, window=window)
    attention = PrefillAttention(shape, device, ring=ring)
    for _ in range(3):  # what a launch counts, the next one finds as it was
        assert torch.equal(attend(attention, step, window=window), expected)
        out = poisoned(expected)
        attention.run(out, step.query, step.pages, window=window)
        assert torch.equal(out, expected)


def test_long_prompts_err_as_little_as_torch_and_like_their_parts(device: torch.device) -> None:
    # Given a step that takes the ring, and the last queries of a prompt, which do not
    shape = PrefillShape(8, 4, 128, torch.bfloat16, max_rows=3, max_tokens=4096)
    step = paged(shape, [(1500, 1500), (1000, 1700), (1300, 1300)], device)
    attention = PrefillAttention(shape, device)
    whole = attend(attention, step)
    exact = KVPages(step.pages.keys.double(), step.pages.values.double(), step.pages.page_table)
    rest = (step.query_starts, step.lengths)
    truth = reference.prefill_attention(step.query.double(), exact, *rest)
    assert_fair(whole, truth, reference.prefill_attention(step.query, step.pages, *rest))
    part = Step(
        step.query[-50:],
        replace(step.pages, page_table=step.pages.page_table[2:]),
        torch.tensor([0, 50], dtype=torch.int32, device=device),
        step.lengths[2:],
    )
    assert torch.equal(attend(attention, part), whole[-50:])


def test_queries_are_rotated_to_the_other_kernels_bits(device: torch.device) -> None:
    shape = shaped(torch.bfloat16, 128, 4)
    step = paged(shape, [(100, 300), (1, 65), (64, 64), (700, 700)], device)
    positions = torch.randint(0, 5000, (step.query.shape[0],), device=device)
    rotary = rotary_table(positions, 1e4 ** -(torch.arange(0, 128, 2, device=device) / 128))
    results = []
    for how in ({"ring": LARGE}, {"ring": SMALL}, {"block": OTHER}):
        attention, out = PrefillAttention(shape, device, rotates=True, **how), poisoned(step.query.contiguous())
        attention.plan(step.query_starts, step.lengths, step.query.shape[0])
        attention.run(out, step.query, step.pages, rotary=rotary)
        results.append(out)
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[2])


def test_a_captured_graph_serves_rows_cut_otherwise(device: torch.device) -> None:
    # Given the graph of a step's plan and of two layers, captured with the tokens in one row
    shape = shaped(torch.bfloat16, 128, 4)
    step = paged(shape, [(900, 2000), (600, 600), (500, 3000)], device)
    attention, other = PrefillAttention(shape, device, ring=LARGE), PrefillAttention(shape, device, block=OTHER)
    starts, lengths = torch.tensor([0, 2000, 2000, 2000], device=device), torch.tensor([2000, 0, 0], device=device)
    now = replace(step, query_starts=starts.to(torch.int32), lengths=lengths.to(torch.int32))
    outs = [poisoned(step.query.contiguous()) for _ in range(2)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=open_device(device.index).new_stream()):
        attention.plan(now.query_starts, now.lengths, 2000)
        for out in outs:
            attention.run(out, now.query, now.pages)
    # When they are cut otherwise
    for cut, keys in (
        ([0, 900, 1500, 2000], [2000, 600, 3000]),
        ([0, 1, 1, 1990], [77, 0, 2000]),
        ([0, 3, 60, 61], [3, 60, 9]),
    ):
        now.query_starts.copy_(torch.tensor(cut))
        now.lengths.copy_(torch.tensor(keys))
        expected = attend(other, now)
        for _ in range(2):
            for out in outs:
                out.fill_(torch.nan)
            graph.replay()
            # I expect what fresh launches give
            for out in outs:
                assert torch.equal(out, expected)


def test_pages_that_do_not_lie_whole_tokens_apart_are_refused(device: torch.device) -> None:
    shape = shaped(torch.bfloat16, 128, 4)
    step = paged(shape, [(20, 20)], device)
    attention = PrefillAttention(shape, device, ring=LARGE)
    attention.plan(step.query_starts, step.lengths, 20)
    wide = torch.randn(9, shape.num_kv_heads * 16 * 128 + 64, device=device, dtype=torch.bfloat16)
    keys = wide[:, :-64].view(9, shape.num_kv_heads, 16, 128)
    with pytest.raises(KernelError, match="whole tokens"):
        attention.run(step.query.contiguous(), step.query, KVPages(keys, keys, step.pages.page_table))
