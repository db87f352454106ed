"""Attention alone on a GPU, for compute-sanitizer: see ``sanitized``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

from headrace.kernels import reference_attention as reference
from headrace.kernels import reference_fused
from headrace.kernels.decode_attention import DecodeAttention
from headrace.kernels.decode_shape import DecodeShape, Ring
from headrace.kernels.encoder_attention import HEAD_DIMS, encoder_attention, most_items, plan_items
from headrace.kernels.heads import HeadNorm, heads_of
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.prefill_attention import PrefillAttention
from headrace.kernels.prefill_ring import LARGE, SMALL
from headrace.kernels.prefill_ring import Ring as PrefillRing
from headrace.kernels.prefill_shape import Block, PrefillShape
from headrace.kernels.rotary import Rotary
from headrace.testing.computed import Computed, normal, room

NUM_KV_HEADS, PAGE_SIZE = 2, 16
DEVICE = torch.device("cuda", 0)


def encoder_attentions() -> Iterator[Computed]:
    """Attention of encoders: every head size, one that is padded, every dtype, rows about a tile's border."""
    num_heads, lengths = 2, [63, 64, 65, 1, 128, 129, 2]
    sizes = [(torch.bfloat16, size) for size in (*HEAD_DIMS, 48)] + [(torch.float16, 64), (torch.float32, 64)]
    for dtype, size in sizes:
        num_tokens = sum(lengths)
        qkv = normal(num_tokens, 3 * num_heads * size, dtype=dtype)
        bias = normal(3 * num_heads * size, dtype=dtype)
        items = torch.from_numpy(plan_items(lengths, most_items(len(lengths), num_tokens)))
        out = room(qkv, num_tokens, num_heads * size)
        encoder_attention(qkv.cuda(), bias.cuda(), items.cuda(), num_heads, out=out)
        rows = []
        for row in torch.split_with_sizes((qkv.double() + bias.double()).to(dtype).double(), lengths):
            query, key, value = row.view(-1, 3, num_heads, size).permute(1, 2, 0, 3)
            seen = functional.scaled_dot_product_attention(query, key, value)
            rows.append(seen.transpose(0, 1).flatten(1))
        yield Computed(f"{dtype}, heads of {size}", out, torch.cat(rows))


@dataclass(frozen=True, slots=True)
class Pages:
    """Keys and values of rows in pages of any order.

    Attributes:
        memory: ``[num_pages, 2, NUM_KV_HEADS, PAGE_SIZE, head_dim]``, on the CPU.
        table: int32 ``[num_rows, max_pages]``.
    """

    memory: Tensor
    table: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], head_dim: int, dtype: torch.dtype) -> "Pages":
        """Fill the pages of so many keys a row."""
        counts = [-(-length // PAGE_SIZE) for length in lengths]
        table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
        for row, pages in enumerate(torch.split_with_sizes(torch.randperm(sum(counts)).int(), counts)):
            table[row, : len(pages)] = pages
        return cls(normal(sum(counts), 2, NUM_KV_HEADS, PAGE_SIZE, head_dim, dtype=dtype), table)

    def exact(self) -> KVPages:
        """In fp64, on the CPU."""
        memory = self.memory.double()
        return KVPages(memory[:, 0], memory[:, 1], self.table)

    def on_device(self) -> KVPages:
        """On the GPU."""
        memory = self.memory.cuda()
        return KVPages(memory[:, 0], memory[:, 1], self.table.cuda())


def decode_attentions() -> Iterator[Computed]:
    """Attention of decoding rows: heads that meet at once and in two rounds; rows whole, in few parts and in many."""
    lengths = [1, 17, 0, 700]
    for dtype, head_dim, group in (
        (torch.bfloat16, 128, 4),
        (torch.bfloat16, 128, 16),
        (torch.float16, 256, 4),
        (torch.float32, 64, 9),
    ):
        pages = Pages.of(lengths, head_dim, dtype)
        shape = _decode_shape(lengths, head_dim, group, dtype)
        query, on_device = normal(len(lengths), shape.num_heads, head_dim, dtype=dtype), pages.on_device()
        own = torch.tensor(lengths)
        for ring in (None, Ring(2, 2, least_tiles=11, whole_tiles=0), Ring(2, 2, least_tiles=1, whole_tiles=0)):
            for cut in (shape, replace(shape, window=37), replace(shape, segment_tokens=64)):
                truth = reference.decode_attention(query.double(), pages.exact(), own, window=cut.window)
                attention, out = DecodeAttention(cut, DEVICE, ring=ring), room(query, *query.shape)
                attention.plan(own.int().cuda())
                attention.run(out, query.cuda(), on_device, own.int().cuda())
                what = f"{dtype}, {shape.num_heads} heads of {head_dim} on {NUM_KV_HEADS}, {ring}"
                yield Computed(f"{what}, window {cut.window}, segments {cut.segment_tokens}", out, truth)


def fused_decode_attentions() -> Iterator[Computed]:
    """Norm, rotation, the write into pages and attention in one launch."""
    lengths = [1, 17, 0, 700]
    for dtype, head_dim, group, rotary_dim, normed in (
        (torch.bfloat16, 128, 4, 128, False),
        (torch.bfloat16, 128, 2, 128, True),
        (torch.float16, 80, 1, 32, False),
        (torch.bfloat16, 96, 16, 0, True),
        (torch.float32, 64, 7, 64, True),
    ):
        shape, pages = _decode_shape(lengths, head_dim, group, dtype), Pages.of(lengths, head_dim, dtype)
        qkv = normal(len(lengths), (shape.num_heads + 2 * NUM_KV_HEADS) * head_dim, dtype=dtype)
        rotary = _angles(len(lengths), rotary_dim) if rotary_dim else None
        weights = normal(2, head_dim, dtype=dtype)
        norm, exact, own = (
            HeadNorm(weights[0], weights[1], 1e-6) if normed else None,
            pages.exact(),
            torch.tensor(lengths),
        )
        query = reference_fused.rotary_kv(
            qkv.double(), own - 1, exact, num_heads=shape.num_heads, rotary=rotary, norm=_norm(norm, torch.float64)
        )
        truth = reference.decode_attention(query, exact, own)
        for ring in (None, Ring(8, 2), Ring(2, 2, least_tiles=1, whole_tiles=0)):
            on_device, out = pages.on_device(), room(qkv, len(lengths), shape.num_heads, head_dim)
            heads = heads_of(head_dim, rotary, normed, dtype.itemsize)
            attention = DecodeAttention(shape, DEVICE, ring=ring, heads=heads)
            attention.plan(own.int().cuda())
            turned = None if rotary is None else Rotary(rotary.cosines.cuda(), rotary.sines.cuda())
            scales = None if norm is None else HeadNorm(norm.query.cuda(), norm.key.cuda(), norm.eps)
            attention.run_fused(out, qkv.cuda(), on_device, own.int().cuda(), rotary=turned, norm=scales)
            what = f"{dtype}, {shape.num_heads} heads of {head_dim} on {NUM_KV_HEADS}, {rotary_dim} turned, {ring}"
            yield Computed(what, out, truth)
            yield Computed(f"{what}, keys", on_device.keys, exact.keys)
            yield Computed(f"{what}, values", on_device.values, exact.values)


@dataclass(frozen=True, slots=True)
class Prompt:
    """How packed prompts attend: a case of ``prefill_attentions``; no ``block``, no ``ring``: the shape's choice."""

    dtype: torch.dtype
    head_dim: int
    group: int
    block: Block | None = None
    window: int | None = None
    ring: PrefillRing | None = None
    rotates: bool = False
    only_last: bool = False


#: By groups of four warps (on Hopper), by single warps, and in fp32. Groups of 128 heads fill the card, so that blocks
#: are whole ones; else they are halved.
PROMPTS = [
    Prompt(torch.bfloat16, 128, 4),
    Prompt(torch.bfloat16, 128, 128),
    Prompt(torch.bfloat16, 128, 7, window=37, rotates=True),
    Prompt(torch.float16, 64, 1, rotates=True),
    Prompt(torch.bfloat16, 80, 5),
    Prompt(torch.bfloat16, 96, 8, only_last=True),
    Prompt(torch.bfloat16, 256, 2, rotates=True),
    Prompt(torch.bfloat16, 64, 4, Block(128, 64)),
    Prompt(torch.bfloat16, 128, 128, Block(128, 32), window=37),
    Prompt(torch.bfloat16, 128, 4, Block(128, 64), rotates=True),
    Prompt(torch.float16, 256, 2, Block(64, 32)),
    Prompt(torch.float32, 64, 71, rotates=True),
    Prompt(torch.float32, 128, 4, window=16),
    Prompt(torch.float32, 256, 2),
]


#: By the bulk copy engine (Hopper).
RING_PROMPTS = [
    Prompt(torch.bfloat16, 128, 4, ring=LARGE, rotates=True),
    Prompt(torch.bfloat16, 128, 128, ring=LARGE, window=37),
    Prompt(torch.float16, 128, 7, ring=SMALL, only_last=True),
]


def prefill_attentions() -> Iterator[Computed]:
    """Attention of packed prompts: whole ones, chunks, single queries, padding; rows about a tile's border."""
    return _prefill_attentions(PROMPTS)


def ring_prefill_attentions() -> Iterator[Computed]:
    """The same by the bulk copy engine."""
    return _prefill_attentions(RING_PROMPTS)


def _prefill_attentions(cases: Sequence[Prompt]) -> Iterator[Computed]:
    rows = [(5, 5), (1, 130), (0, 0), (17, 33), (3, 0), (64, 64), (65, 200), (0, 9)]
    starts = torch.tensor([0, *accumulate(queries for queries, _ in rows)])
    lengths, num_tokens = torch.tensor([length for _, length in rows]), int(starts[-1])
    for case in cases:
        shape = PrefillShape(NUM_KV_HEADS, case.group, case.head_dim, case.dtype, len(rows), num_tokens, PAGE_SIZE)
        pages = Pages.of(lengths.tolist(), case.head_dim, case.dtype)
        query = normal(num_tokens, shape.num_heads, case.head_dim, dtype=case.dtype)
        rotary = _angles(num_tokens, case.head_dim) if case.rotates else None
        turned = query.double() if rotary is None else reference_fused.rotate(query.double(), rotary)
        truth = reference.prefill_attention(turned, pages.exact(), starts, lengths, window=case.window)
        attention = PrefillAttention(shape, DEVICE, block=case.block, ring=case.ring, rotates=case.rotates)
        out = room(query, *query.shape)
        attention.plan(starts.int().cuda(), lengths.int().cuda(), num_tokens, only_last=case.only_last)
        angles = None if rotary is None else Rotary(rotary.cosines.cuda(), rotary.sines.cuda())
        attention.run(out, query.cuda(), pages.on_device(), window=case.window, rotary=angles)
        seen = [end - 1 for end, (queries, _) in zip(starts[1:].tolist(), rows, strict=True) if queries]
        last = seen if case.only_last else list(range(num_tokens))
        yield Computed(str(case), out.cpu()[last], truth[last])


def _decode_shape(lengths: Sequence[int], head_dim: int, group: int, dtype: torch.dtype) -> DecodeShape:
    return DecodeShape(NUM_KV_HEADS, group, head_dim, dtype, len(lengths), -(-max(lengths) // PAGE_SIZE), PAGE_SIZE)


def _angles(num_tokens: int, rotary_dim: int) -> Rotary:
    angles = torch.rand(num_tokens, rotary_dim // 2) * 6
    return Rotary(angles.cos(), angles.sin())


def _norm(norm: HeadNorm | None, dtype: torch.dtype) -> HeadNorm | None:
    return None if norm is None else HeadNorm(norm.query.to(dtype), norm.key.to(dtype), norm.eps)
