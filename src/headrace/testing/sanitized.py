"""Kernels of ours alone on a GPU, for compute-sanitizer.

Inputs and truths are made on the CPU, so that no library's product runs in the process. racecheck ends with an error of
its own ("failed to handle a hardware exception") in a process that multiplies 16-bit numbers by cuBLAS, even if it is
told to look at our kernels only; without that filter it reports a race within cuBLAS's kernel, as ``cublas`` shows.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from headrace.kernels import reference_attention as reference
from headrace.kernels.decode_attention import DecodeAttention
from headrace.kernels.decode_shape import DecodeShape, Ring
from headrace.kernels.encoder_attention import HEAD_DIMS, encoder_attention, most_items, plan_items
from headrace.kernels.encoder_embedding import encoder_embedding
from headrace.kernels.encoder_table import Embeddings, Norm
from headrace.kernels.fixed_product import FEW, MANY, fixed_product
from headrace.kernels.middle_choice import Tiling
from headrace.kernels.middle_product import MiddleProduct
from headrace.kernels.pooling import pool
from headrace.kernels.rotary_kv import KVPages
from headrace.kernels.softmax import softmax
from headrace.kernels.thin_choice import Tiling as ThinTiling
from headrace.kernels.thin_product import ThinProduct


class Computed(NamedTuple):
    """A result on the GPU, what it is of, and what it should be."""

    what: str
    ours: Tensor
    truth: Tensor

    @property
    def is_right(self) -> bool:
        """Whether a result of 16 bits is as near as it can be expected to be; tests are stricter."""
        ours, truth = self.ours.double().cpu(), self.truth.double()
        return bool((ours - truth).abs().max() <= 2e-2 * truth.abs().max())


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Normal numbers on the CPU."""
    return torch.randn(shape).to(dtype)


def room(like: Tensor, *shape: int) -> Tensor:
    """A result on the GPU in which an element that is not written shows."""
    return torch.full(shape, torch.nan, dtype=like.dtype, device="cuda")


def fixed_products() -> Iterator[Computed]:
    """Products in fixed orders: every tile, ragged edges."""
    for tile, (outputs, inputs) in product((*FEW, *MANY), ((33, 72), (129, 1000))):
        weight, bias = normal(outputs, inputs), normal(outputs)
        for num_tokens in (1, tile.tokens + 1):
            x = normal(num_tokens, inputs)
            y = room(x, num_tokens, outputs)
            fixed_product(x.cuda(), weight.cuda(), bias.cuda(), y, tile=tile)
            what = f"tiles of {tile.tokens} x {tile.outputs}: {num_tokens} x {outputs} x {inputs}"
            yield Computed(what, y, x.double() @ weight.double().T + bias.double())


def thin_products() -> Iterator[Computed]:
    """Products of few tokens: every way to cut them up that few rows of a weight reach, ragged edges."""
    for (outputs, inputs), num_tokens in product(
        ((300, 1000), (2500, 1024), (6000, 1000), (20000, 264), (100, 3000), (300, 4096), (50, 9000)), (1, 2, 8, 13)
    ):
        weight, x, bias = normal(outputs, inputs), normal(num_tokens, inputs), normal(outputs)
        y = room(x, num_tokens, outputs)
        ThinProduct(weight.cuda(), bias.cuda())(x.cuda(), y)
        truth = x.double() @ weight.double().T + bias.double()
        yield Computed(f"{num_tokens} x {outputs} x {inputs}", y, truth)
        if outputs > 1 << 11:
            y = room(x, num_tokens, outputs)
            dealt = ThinTiling(8, 1024, 3, 8, x_in_shared=num_tokens > 1, blocks=1, dealt=True)
            ThinProduct(weight.cuda(), bias.cuda())(x.cuda(), y, tiling=dealt)
            yield Computed(f"{num_tokens} x {outputs} x {inputs}, dealt", y, truth)


def middle_products() -> Iterator[Computed]:
    """Products of some tokens: one to eight blocks a tile, ragged edges, a gate."""
    cases = [
        (64, 512, 32, Tiling(64, 1, 4)),
        (256, 1024, 33, Tiling(96, 1, 3)),
        (2048, 320, 24, Tiling(8, 1, 2)),
        (200, 1000, 128, Tiling(96, 1, 3)),
        (256, 1024, 50, Tiling(64, 2, 4)),
        (1000, 1096, 64, Tiling(104, 8, 2)),
        (8, 8, 8, None),
    ]
    for outputs, inputs, num_tokens, tiling in cases:
        weight, x, bias = normal(outputs, inputs), normal(num_tokens, inputs), normal(outputs)
        y = room(x, num_tokens, outputs)
        MiddleProduct(weight.cuda(), bias.cuda())(x.cuda(), y, tiling=tiling)
        truth = x.double() @ weight.double().T + bias.double()
        yield Computed(f"{num_tokens} x {outputs} x {inputs}, {tiling}", y, truth)
    weight, x = normal(512, 1024) / 32, normal(100, 1024)
    y = room(x, 100, 256)
    MiddleProduct(weight.cuda())(x.cuda(), y, gated=True, tiling=Tiling(128, 4, 2))
    gate, up = (x.double() @ weight.double().T).view(100, 256, 2).unbind(-1)
    yield Computed("gated", y, functional.silu(gate) * up)


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


def decode_attentions() -> Iterator[Computed]:
    """Attention of decoding rows: heads that meet at once and in two rounds; rows whole, in few parts and in many."""
    num_kv_heads, page_size, counts = 2, 16, [1, 2, 0, 44]
    lengths, page_table = torch.tensor([1, 17, 0, 700]), torch.zeros(len(counts), max(counts), dtype=torch.int32)
    order = torch.randperm(sum(counts)).int()
    for row, pages in enumerate(torch.split_with_sizes(order, counts)):
        page_table[row, : len(pages)] = pages
    for dtype, head_dim, group in (
        (torch.bfloat16, 128, 4),
        (torch.bfloat16, 128, 16),
        (torch.float16, 256, 4),
        (torch.float32, 64, 9),
    ):
        shape = DecodeShape(num_kv_heads, group, head_dim, dtype, len(counts), max(counts), page_size)
        memory = normal(sum(counts), 2, num_kv_heads, page_size, head_dim, dtype=dtype)
        query = normal(len(counts), shape.num_heads, head_dim, dtype=dtype)
        exact = KVPages(memory[:, 0].double(), memory[:, 1].double(), page_table)
        truth = reference.decode_attention(query.double(), exact, lengths)
        on_device, own = memory.cuda(), lengths.int().cuda()
        for ring in (None, Ring(2, 2, least_tiles=11, whole_tiles=0), Ring(2, 2, least_tiles=1, whole_tiles=0)):
            attention = DecodeAttention(shape, on_device.device, ring=ring)
            out = room(query, *query.shape)
            attention.plan(own)
            attention.run(out, query.cuda(), KVPages(on_device[:, 0], on_device[:, 1], page_table.cuda()), own)
            yield Computed(f"{dtype}, {shape.num_heads} heads of {head_dim} on {num_kv_heads}, {ring}", out, truth)


def encoder_rows() -> Iterator[Computed]:
    """Encoders' first input and pooling: a warp and a block a row, several rows a warp, ids that tables do not hold."""
    for dtype, width, num_tokens in (
        (torch.bfloat16, 768, 9000),
        (torch.float16, 2304, 9000),
        (torch.float32, 129, 700),
    ):
        tables = [normal(count, width, dtype=dtype) for count in (50, 30, 2)]
        ids = [torch.randint(-1, count + 1, (num_tokens,)) for count in (50, 30, 2)]
        weight, bias = normal(width, dtype=dtype), normal(width, dtype=dtype)
        words, positions, types = (table.cuda() for table in tables)
        embeddings = Embeddings(words, positions, types, Norm(weight.cuda(), bias.cuda(), 1e-5))
        out = room(tables[0], num_tokens, width)
        encoder_embedding(ids[0].cuda(), ids[1].cuda(), ids[2].cuda(), embeddings, out=out)
        x = torch.zeros(num_tokens, width, dtype=torch.float64)
        for table, own in zip(tables, ids, strict=True):
            known = (own >= 0) & (own < len(table))
            x[known] += table[own[known]].double()
        truth = functional.layer_norm(x, (width,), weight.double(), bias.double(), 1e-5)
        yield Computed(f"first input, {num_tokens} x {width}", out, truth)
    lengths = [1, 5, 80, 33, 64, 300]
    for num_more, width in product((0, 140), (768, 31, 3000)):
        every = [*lengths, *[1] * num_more]
        x = normal(sum(every), width)
        starts = torch.tensor([0, *every]).cumsum(0).int()
        out = torch.full((len(every), width), torch.nan, device="cuda")
        pool(x.cuda(), starts.cuda(), "mean", normalise=True, out=out)
        means = torch.stack([rows.mean(0) for rows in torch.split_with_sizes(x.double(), every)])
        yield Computed(f"pooling, {len(every)} rows of {width}", out, functional.normalize(means))


def softmaxes() -> Iterator[Computed]:
    """Softmax: lanes, a warp and a block a row, rows in registers and not, with a mask and without."""
    shapes = ((32, 32), (7, 20), (33, 100), (5, 1000), (3, 5000), (2, 40000))
    for dtype, (queries, length) in product((torch.bfloat16, torch.float32), shapes):
        scores, mask = normal(2, 3, queries, length, dtype=dtype), torch.rand(2, 1, 1, length) < 0.9
        for seen in (None, mask):
            hidden = scores.double() if seen is None else scores.double().masked_fill(~seen, -torch.inf)
            ours = softmax(scores.cuda(), None if seen is None else seen.cuda(), out=room(scores, *scores.shape))
            yield Computed(f"{dtype}, rows of {length}{'' if seen is None else ', masked'}", ours, hidden.softmax(-1))


def cublas() -> Iterator[Computed]:
    """Nothing of ours: one product of cuBLAS, over which racecheck stumbles."""
    weight, x = normal(4096, 1024) / 32, normal(256, 1024)
    yield Computed("256 x 4096 x 1024", functional.linear(x.cuda(), weight.cuda()), x.double() @ weight.double().T)


#: By name; all but the last should be clean.
PROGRAMS: Mapping[str, Callable[[], Iterator[Computed]]] = {
    "fixed_products": fixed_products,
    "thin_products": thin_products,
    "middle_products": middle_products,
    "encoder_attentions": encoder_attentions,
    "decode_attentions": decode_attentions,
    "encoder_rows": encoder_rows,
    "softmaxes": softmaxes,
    "cublas": cublas,
}


def run(name: str) -> int:
    """Run a program, a line a result; returns how many results are wrong or not numbers."""
    torch.manual_seed(0)
    num_wrong = 0
    for computed in PROGRAMS[name]():
        torch.cuda.synchronize()
        num_wrong += not computed.is_right
        print(f"{name}: {computed.what}: {'right' if computed.is_right else 'WRONG'}", flush=True)
    return num_wrong
