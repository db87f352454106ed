"""Norm, rotation, the write into pages and attention in one launch, beside the kernels that do it one by one."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tests.gpu.test_decode_attention import LENGTHS, paged, shaped
from tests.gpu.tolerance import assert_fair, poisoned
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels import reference_attention as reference
from headrace.kernels.decode_attention import DecodeAttention
from headrace.kernels.decode_shape import DecodeShape, Ring
from headrace.kernels.device import open_device
from headrace.kernels.heads import HeadNorm, heads_of
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.launch import is_ours
from headrace.kernels.programmatic import make_programmatic
from headrace.kernels.rotary import Rotary
from headrace.kernels.rotary_kv import rotary_kv


class Fused:
    """A shape's two ways."""

    def __init__(
        self,
        shape: DecodeShape,
        lengths: Sequence[int],
        device: torch.device,
        *,
        rotary_dim: int | None,
        normed: bool,
        ring: Ring | None = None,
    ) -> None:
        self.shape = shape
        _, self.pages, self.lengths = paged(shape, lengths, device)
        num_rows = len(lengths)
        self.rotary = None
        if rotary_dim:
            angles = torch.rand(num_rows, rotary_dim // 2, device=device) * 6
            self.rotary = Rotary(angles.cos(), angles.sin())
        weights = torch.rand(2, shape.head_dim, device=device).to(shape.dtype) + 0.5
        self.norm = HeadNorm(weights[0], weights[1], 1e-6) if normed else None
        heads = heads_of(shape.head_dim, self.rotary, normed, shape.dtype.itemsize)
        self.fused = DecodeAttention(shape, device, ring=ring, heads=heads)
        self.plain = DecodeAttention(shape, device, ring=ring)
        self.width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
        # The newest tokens' places are NaN before they are written.
        for row, length in enumerate(lengths):
            if length:
                page, slot = divmod(length - 1, shape.page_size)
                for side in (self.pages.keys, self.pages.values):
                    side[self.pages.page_table[row, page].long(), :, slot] = torch.nan
        keys, values = (side.contiguous() for side in (self.pages.keys, self.pages.values))
        self.other = KVPages(keys, values, self.pages.page_table)
        self.plan()

    def plan(self) -> None:
        self.fused.plan(self.lengths)
        self.plain.plan(self.lengths)

    def together(self, qkv: Tensor, *, old_is_settled: bool = False) -> Tensor:
        out = self._out(qkv)
        self.fused.run_fused(
            out, qkv, self.pages, self.lengths, rotary=self.rotary, norm=self.norm, old_is_settled=old_is_settled
        )
        return out

    def one_by_one(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """The result, and the queries."""
        out, positions = self._out(qkv), self.lengths - 1
        query = rotary_kv(
            qkv, positions, self.other, num_heads=self.shape.num_heads, rotary=self.rotary, norm=self.norm
        )
        self.plain.run(out, query, self.other, self.lengths)
        return out, query

    def _out(self, qkv: Tensor) -> Tensor:
        return poisoned(qkv.new_empty(qkv.shape[0], self.shape.num_heads, self.shape.head_dim))


def check(
    shape: DecodeShape,
    lengths: Sequence[int],
    device: torch.device,
    *,
    rotary_dim: int | None,
    normed: bool,
    ring: Ring | None = None,
) -> None:
    ways = Fused(shape, lengths, device, rotary_dim=rotary_dim, normed=normed, ring=ring)
    qkv = torch.randn(len(lengths), ways.width, device=device, dtype=shape.dtype)
    together = ways.together(qkv)
    expected, query = ways.one_by_one(qkv)
    exact = KVPages(ways.other.keys.double(), ways.other.values.double(), ways.other.page_table)
    truth = reference.decode_attention(query.double(), exact, ways.lengths, window=shape.window)
    peer = reference.decode_attention(query, ways.other, ways.lengths, window=shape.window)
    assert_fair(together, truth, peer)
    assert_fair(expected, truth, peer)
    for written, wanted in ((ways.pages.keys, ways.other.keys), (ways.pages.values, ways.other.values)):
        assert torch.equal(written.nan_to_num(7.0), wanted.nan_to_num(7.0))
    # Again, over what has been written.
    assert torch.equal(ways.together(qkv), together)


@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: f"{len(lengths)}rows")
@pytest.mark.parametrize(
    ("head_dim", "group", "rotary_dim", "normed"),
    [(128, 4, 128, False), (128, 2, 128, True), (64, 7, 64, True), (80, 1, 32, False), (256, 2, 64, False)],
)
def test_one_launch_does_what_two_do(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    group: int,
    rotary_dim: int,
    normed: bool,
    lengths: list[int],
) -> None:
    check(shaped(lengths, dtype, head_dim, group), lengths, device, rotary_dim=rotary_dim, normed=normed)


@pytest.mark.parametrize("ring", [Ring(8, 2), Ring(2, 3, least_blocks=4), Ring(4, 2, 2), Ring(1, 2, 1, 0)], ids=str)
def test_one_launch_is_right_however_a_block_reads(device: torch.device, ring: Ring) -> None:
    lengths = [4000, 1, 250, 16, 0, 65, *(1 + 13 * row % 300 for row in range(90))]
    check(shaped(lengths, torch.bfloat16, 128, 4), lengths, device, rotary_dim=128, normed=True, ring=ring)


@pytest.mark.parametrize("normed", [False, True])
def test_models_without_rotation_fuse_too(device: torch.device, normed: bool) -> None:
    lengths = [1, 16, 0, 700]
    check(shaped(lengths, torch.bfloat16, 96, 16), lengths, device, rotary_dim=None, normed=normed)


@pytest.mark.parametrize("page_size", [16, 48, 64])
@pytest.mark.parametrize("window", [None, 1, 37])
@pytest.mark.parametrize("segment_tokens", [None, 64])
def test_pages_windows_and_segments_of_any_size(
    device: torch.device, page_size: int, window: int | None, segment_tokens: int | None
) -> None:
    lengths = [1, 16, 17, 0, 1000, 37, 38, 2049]
    shape = replace(shaped(lengths, torch.bfloat16, 128, 4, page_size), window=window, segment_tokens=segment_tokens)
    check(shape, lengths, device, rotary_dim=128, normed=True)


def test_old_keys_are_read_early_and_the_newest_is_none_of_them(device: torch.device) -> None:
    # Given a graph in which each attention may begin before the kernel that makes its queries and newest keys has ended
    lengths = [1, 16, 17, 300, 5000, 33]
    ways = Fused(shaped(lengths, torch.bfloat16, 128, 4), lengths, device, rotary_dim=128, normed=True)
    steps = [torch.randn(len(lengths), ways.width, device=device, dtype=torch.bfloat16) for _ in range(30)]
    late = [ways.together(qkv) for qkv in steps]
    torch.cuda.synchronize()
    made, zeros = torch.zeros_like(steps[0]), torch.zeros_like(steps[0])
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph, stream=open_device(device.index).new_stream()):
        early = []
        for qkv in steps:
            torch.add(qkv, zeros, out=made)
            early.append(ways.together(made, old_is_settled=True))
    make_programmatic(graph.raw_cuda_graph(), is_ours)
    graph.instantiate()
    # When it runs, again and again
    for _ in range(10):
        for out in early:
            out.fill_(torch.nan)
        graph.replay()
        # I expect the bits of launches that follow each other
        assert all(torch.equal(a, b) for a, b in zip(early, late, strict=True))


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    ways = Fused(shaped([100, 20], torch.bfloat16, 128, 4), [100, 20], device, rotary_dim=128, normed=True)
    qkv = torch.randn(2, ways.width, device=device, dtype=torch.bfloat16)
    out = qkv.new_empty(2, ways.shape.num_heads, 128)
    with pytest.raises(KernelError, match="this attention is for"):
        ways.fused.run_fused(out, qkv, ways.pages, ways.lengths, rotary=ways.rotary)
    with pytest.raises(KernelError, match="run_fused"):
        ways.fused.run(out, out, ways.pages, ways.lengths)
    with pytest.raises(KernelError, match="this attention is for"):
        ways.plain.run_fused(out, qkv, ways.pages, ways.lengths, rotary=ways.rotary, norm=ways.norm)
    with pytest.raises(KernelError, match="qkv"):
        ways.fused.run_fused(out, qkv[:, 1:], ways.pages, ways.lengths, rotary=ways.rotary, norm=ways.norm)
