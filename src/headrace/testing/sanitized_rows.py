"""Norms, softmax, gates, gathers and sums alone on a GPU, for compute-sanitizer: see ``sanitized``."""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from headrace.kernels import reference_fused as reference
from headrace.kernels.activation import bias_gelu, geglu, swiglu
from headrace.kernels.add import add
from headrace.kernels.embedding import embedding
from headrace.kernels.encoder_embedding import encoder_embedding
from headrace.kernels.encoder_table import Embeddings, Norm, Pooling
from headrace.kernels.layer_norm import layer_norm
from headrace.kernels.place_rows import place_rows
from headrace.kernels.pooling import pool
from headrace.kernels.rms_norm import rms_norm
from headrace.kernels.softmax import softmax
from headrace.testing.computed import Computed, normal, room

POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "last", "max")


def norms() -> Iterator[Computed]:
    """Norms: a warp and a block a row, rows in registers and not, with a bias, a residual stream that is updated."""
    for dtype, width, num_rows, with_more in (
        (torch.bfloat16, 31, 5, False),
        (torch.bfloat16, 256, 2200, True),
        (torch.bfloat16, 1000, 2200, False),
        (torch.float32, 1000, 5, True),
        (torch.bfloat16, 4096, 300, True),
        (torch.float16, 33000, 3, True),
        (torch.float32, 40000, 2, False),
    ):
        x, weight, bias = (normal(*shape, dtype=dtype) for shape in ((num_rows, width), (width,), (width,)))
        residual, input_bias = (normal(num_rows, width, dtype=dtype), normal(width, dtype=dtype))
        stream = x.double() + (residual.double() + input_bias.double() if with_more else 0)
        truths = {
            "RMSNorm": functional.rms_norm(stream, (width,), weight.double(), 1e-6),
            "LayerNorm": functional.layer_norm(stream, (width,), weight.double(), bias.double(), 1e-5),
        }
        for name, truth in truths.items():
            out, updated = room(x, num_rows, width), residual.cuda()
            more = (updated, input_bias.cuda()) if with_more else (None, None)
            if name == "RMSNorm":
                rms_norm(x.cuda(), weight.cuda(), 1e-6, residual=more[0], input_bias=more[1], out=out)
            else:
                layer_norm(x.cuda(), weight.cuda(), bias.cuda(), 1e-5, residual=more[0], input_bias=more[1], out=out)
            yield Computed(f"{name}, {dtype}, {num_rows} x {width}{', with more' if with_more else ''}", out, truth)
            if with_more:
                yield Computed(f"{name}, {dtype}, {num_rows} x {width}, the stream", updated, stream)


def softmaxes() -> Iterator[Computed]:
    """Softmax: lanes, a warp and a block a row, rows in registers and not, with a mask and without."""
    shapes = ((32, 32), (7, 20), (33, 100), (5, 1000), (3, 5000), (2, 40000))
    for dtype, (queries, length) in product((torch.bfloat16, torch.float32), shapes):
        scores, mask = normal(2, 3, queries, length, dtype=dtype), torch.rand(2, 1, 1, length) < 0.9
        for seen in (None, mask):
            hidden = scores.double() if seen is None else scores.double().masked_fill(~seen, -torch.inf)
            ours = softmax(scores.cuda(), None if seen is None else seen.cuda(), out=room(scores, *scores.shape))
            yield Computed(f"{dtype}, rows of {length}{'' if seen is None else ', masked'}", ours, hidden.softmax(-1))


def activations() -> Iterator[Computed]:
    """Gates and GELU: every form, odd widths, and so much that a thread has two vectors."""
    for dtype, num_rows, width in ((torch.bfloat16, 5, 97), (torch.float32, 300, 1000), (torch.bfloat16, 1200, 7200)):
        gate_up, x, bias = (
            normal(*shape, dtype=dtype) for shape in ((num_rows, 2 * width), (num_rows, width), (width,))
        )
        size = f"{dtype}, {num_rows} x {width}"
        for layout in ("halves", "alternating"):
            ours = swiglu(gate_up.cuda(), layout=layout, out=room(x, num_rows, width))
            yield Computed(f"SwiGLU, {size}, {layout}", ours, reference.swiglu(gate_up.double(), layout=layout))
        for gelu in ("tanh", "erf"):
            ours = geglu(gate_up.cuda(), gelu=gelu, out=room(x, num_rows, width))
            yield Computed(f"GeGLU, {size}, {gelu}", ours, reference.geglu(gate_up.double(), gelu=gelu))
            for added in (None, bias):
                given = None if added is None else added.cuda()
                ours = bias_gelu(x.cuda(), given, gelu=gelu, out=room(x, num_rows, width))
                truth = reference.bias_gelu(x.double(), None if added is None else added.double(), gelu=gelu)
                yield Computed(f"GELU, {size}, {gelu}{'' if added is None else ', biased'}", ours, truth)


def moved_rows() -> Iterator[Computed]:
    """Gathers of known and unknown tokens, rows placed among wider ones, sums in place."""
    for dtype, index, num_tokens, width in (
        (torch.bfloat16, torch.int64, 1, 1024),
        (torch.bfloat16, torch.int32, 3000, 1024),
        (torch.float32, torch.int64, 7, 31),
        (torch.float16, torch.int32, 70, 9000),
    ):
        weight, token_ids = normal(50, width, dtype=dtype), torch.randint(5, 60, (num_tokens,), dtype=index)
        ours = embedding(token_ids.cuda(), weight.cuda(), first_id=7, out=room(weight, num_tokens, width))
        truth = reference.embedding(token_ids, weight, first_id=7)
        yield Computed(f"gather, {dtype}, {num_tokens} x {width}", ours, truth)
    for dtype, index, num_rows, width, beside in (
        (torch.bfloat16, torch.int64, 9, 4096, 2048),
        (torch.bfloat16, torch.int32, 3203, 7, 3),
        (torch.float32, torch.int64, 9, 5000, 0),
    ):
        rows, wider = normal(num_rows, width, dtype=dtype), normal(2 * num_rows, width + beside, dtype=dtype)
        out, truth, indices = wider.cuda(), wider.clone(), torch.randperm(2 * num_rows)[:num_rows]
        place_rows(rows.cuda(), indices.to(index).cuda(), out)
        truth[indices, :width] = rows
        yield Computed(f"rows placed, {dtype}, {num_rows} x {width} of {width + beside}", out, truth)
    for dtype, count in (
        (torch.bfloat16, 7),
        (torch.float16, 5000),
        (torch.float32, 30002),
        (torch.bfloat16, 300002),
        (torch.float32, (1 << 24) + 2),
    ):
        x, y = normal(count, dtype=dtype), normal(count, dtype=dtype)
        ours = x.cuda()
        add(ours, y.cuda())
        yield Computed(f"sum, {dtype}, {count}", ours, x.double() + y.double())


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
        for way in POOLINGS if width == 31 else POOLINGS[:1]:
            out = torch.full((len(every), width), torch.nan, device="cuda")
            pool(x.cuda(), starts.cuda(), way, normalise=True, out=out)
            pooled = torch.stack([_pooled(row, way) for row in torch.split_with_sizes(x.double(), every)])
            yield Computed(f"pooling ({way}), {len(every)} rows of {width}", out, functional.normalize(pooled))


def _pooled(row: Tensor, way: Pooling) -> Tensor:
    if way == "mean":
        return row.mean(0)
    return row.amax(0) if way == "max" else row[0 if way == "cls" else -1]
