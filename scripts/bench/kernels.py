"""Each memory-bound kernel beside torch's own operation and the card's copy bandwidth.

A case is ``kernel/<name>/<shape>``; bf16 unless it says otherwise. The cache is overwritten before every run, torch's
operation runs in turn with ours, and the bytes counted are those that must move: each input read once, each result
written once. Launches under 10 us are repeated more often. Where torch takes about as long, both are timed once more in
graphs of many launches, which find small data in the cache (``graph_time``), and ours as in a step, where a launch may
begin before the one before it has ended (``graph_time_dependent``).
"""

import re
from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from headrace.kernels import reference_fused as reference
from headrace.kernels.activation import bias_gelu, geglu, swiglu
from headrace.kernels.add import add
from headrace.kernels.embedding import embedding
from headrace.kernels.encoder_embedding import encoder_embedding
from headrace.kernels.encoder_reference import EncoderReference
from headrace.kernels.encoder_table import Embeddings, EncoderBatch, Norm
from headrace.kernels.heads import HeadNorm
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.layer_norm import layer_norm
from headrace.kernels.page_copy import copy_pages
from headrace.kernels.place_rows import place_rows
from headrace.kernels.pooling import pool
from headrace.kernels.rms_norm import rms_norm
from headrace.kernels.rotary import rotary_table
from headrace.kernels.rotary_kv import rotary_kv
from headrace.kernels.softmax import softmax
from headrace.testing.gpu_timing import Timer
from headrace.testing.graph_timing import GraphTimer
from headrace.testing.kernel_cases import Case, measure
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.rows import ONLY, Report, arguments

DEVICE = torch.device("cuda", 0)
CLOSE = 0.9
NUM_ROWS = (1, 8, 64, 256, 2048, 16384, 65536)


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=dtype)


def norms() -> Iterator[Case]:
    for width, n in product((1024, 4096), NUM_ROWS):
        x, residual, w, out = normal(n, width), normal(n, width), normal(width), normal(n, width)
        size, shape = x.nbytes, f"{n}x{width}"
        yield Case(
            f"rms_norm/{shape}",
            2 * size,
            partial(rms_norm, x, w, 1e-6, out=out),
            partial(functional.rms_norm, x, [width], w, 1e-6),
            "torch rms_norm",
        )
        yield Case(
            f"rms_norm/residual_{shape}",
            4 * size,
            partial(rms_norm, x, w, 1e-6, residual=residual, out=out),
            partial(reference.rms_norm, x, w, 1e-6, residual=residual),
            "torch add, rms_norm",
        )
        yield Case(
            f"layer_norm/{shape}",
            2 * size,
            partial(layer_norm, x, w, w, 1e-5, out=out),
            partial(functional.layer_norm, x, [width], w, w, 1e-5),
            "torch layer_norm",
        )
        yield Case(
            f"layer_norm/bias_residual_{shape}",
            4 * size,
            partial(layer_norm, x, w, w, 1e-5, residual=residual, input_bias=w, out=out),
            partial(reference.layer_norm, x, w, w, 1e-5, residual=residual, input_bias=w),
            "torch add, add, layer_norm",
        )


def softmaxes() -> Iterator[Case]:
    for batch, length in ((1, 32), (32, 32), (512, 32), (4, 128), (16, 128), (16, 512), (4, 1024), (1, 8192)):
        scores = normal(batch, 16, min(length, 1024), length)
        out = torch.empty_like(scores)
        mask = torch.rand(batch, 1, 1, length, device=DEVICE) < 0.9
        shape = "x".join(str(extent) for extent in scores.shape)
        yield Case(
            f"softmax/{shape}",
            2 * scores.nbytes,
            partial(softmax, scores, out=out),
            partial(torch.softmax, scores, -1),
            "torch softmax",
        )
        yield Case(
            f"softmax/masked_{shape}",
            2 * scores.nbytes,
            partial(softmax, scores, mask, scale=0.125, out=out),
            partial(_masked_softmax, scores, ~mask),
            "torch mul, masked_fill_, softmax",
        )


def _masked_softmax(scores: Tensor, hidden: Tensor) -> Tensor:
    return (scores * 0.125).masked_fill_(hidden, -torch.inf).softmax(dim=-1)


def activations() -> Iterator[Case]:
    for width, n in product((3072, 14336), NUM_ROWS):
        gate_up, bias, out = normal(n, 2 * width), normal(width), normal(n, width)
        x, size, shape = gate_up[:, :width].contiguous(), out.nbytes, f"{n}x{width}"
        yield Case(
            f"swiglu/{shape}",
            3 * size,
            partial(swiglu, gate_up, out=out),
            partial(reference.swiglu, gate_up),
            "torch silu, mul",
        )
        yield Case(
            f"swiglu/alternating_{shape}",
            3 * size,
            partial(swiglu, gate_up, layout="alternating", out=out),
            partial(reference.swiglu, gate_up, layout="alternating"),
            "torch silu, mul",
        )
        yield Case(
            f"geglu/{shape}",
            3 * size,
            partial(geglu, gate_up, out=out),
            partial(reference.geglu, gate_up),
            "torch gelu, mul",
        )
        yield Case(
            f"bias_gelu/{shape}",
            2 * size,
            partial(bias_gelu, x, bias, out=out),
            partial(reference.bias_gelu, x, bias),
            "torch add, gelu",
        )
        yield Case(
            f"bias_gelu/unbiased_{shape}",
            2 * size,
            partial(bias_gelu, x, None, out=out),
            partial(functional.gelu, x),
            "torch gelu",
        )


def gathers() -> Iterator[Case]:
    for vocab, width in ((151936, 1024), (128256, 4096)):
        weight = normal(vocab, width)
        for n in NUM_ROWS:
            ids, out = torch.randint(vocab, (n,), device=DEVICE), normal(n, width)
            yield Case(
                f"embedding/{n}x{width}",
                2 * out.nbytes,
                partial(embedding, ids, weight, out=out),
                partial(functional.embedding, ids, weight),
                "torch embedding",
            )


def placements() -> Iterator[Case]:
    """Queries of a step's sampled tokens among queries, keys and values."""
    for (width, out_width), n in product(((2048, 4096), (4096, 6144)), NUM_ROWS):
        rows, out = normal(n, width), normal(n, out_width)
        indices = torch.randperm(n, device=DEVICE)
        yield Case(
            f"place_rows/{n}x{width}",
            2 * rows.nbytes,
            partial(place_rows, rows, indices, out),
            partial(out[:, :width].index_copy_, 0, indices, rows),
            "torch index_copy_",
        )


def rotaries() -> Iterator[Case]:
    for (name, num_heads, normed), n in product((("l8b", 32, False), ("q06", 16, True)), NUM_ROWS):
        qkv, query = normal(n, (num_heads + 16) * 128), normal(n, num_heads, 128)
        num_pages = -(-n // 16)
        memory = normal(num_pages, 2, 8, 16, 128)
        table = torch.randperm(num_pages, device=DEVICE).to(torch.int32)[None]
        pages = KVPages(memory[:, 0], memory[:, 1], table)
        positions = torch.arange(n, device=DEVICE)
        rows = torch.zeros(n, device=DEVICE, dtype=torch.int32)
        rotary = rotary_table(positions, 5e5 ** -(torch.arange(0, 128, 2, device=DEVICE) / 128))
        norm = HeadNorm(normal(128), normal(128), 1e-6) if normed else None
        ours = partial(
            rotary_kv, qkv, positions, pages, num_heads=num_heads, rotary=rotary, norm=norm, rows=rows, out=query
        )
        theirs = partial(
            reference.rotary_kv, qkv, positions, pages, num_heads=num_heads, rotary=rotary, norm=norm, rows=rows
        )
        moved = 2 * qkv.nbytes + 2 * rotary.cosines.nbytes
        yield Case(f"rotary_kv/{name}_{n}", moved, ours, theirs, "the same in torch operations")


def additions() -> Iterator[Case]:
    for width, n in product((1024, 4096), NUM_ROWS):
        x, y = normal(n, width), normal(n, width)
        yield Case(f"add/{n}x{width}", 3 * x.nbytes, partial(add, x, y), partial(x.add_, y), "torch add_")


def encoder_embeddings() -> Iterator[Case]:
    width = 768
    words, table = normal(250_002, width), normal(514, width)
    embeddings = Embeddings(words, table, normal(1, width), Norm(normal(width), normal(width), 1e-5))
    theirs = EncoderReference(DEVICE)
    for n in (*NUM_ROWS, 250_000):
        # Every word once: what comes twice would come from the cache, and count as if it had moved.
        ids, positions = torch.randperm(250_002, device=DEVICE)[:n], torch.arange(n, device=DEVICE) % 514
        out = normal(n, width)
        batch = EncoderBatch(token_ids=ids, positions=positions, type_ids=None, starts=positions[:1], lengths=())
        yield Case(
            f"encoder_embedding/{n}x{width}",
            2 * out.nbytes,
            partial(encoder_embedding, ids, positions, None, embeddings, out=out),
            partial(theirs.embed, batch, embeddings),
            "torch embedding, embedding, add, add, layer_norm",
        )


def poolings() -> Iterator[Case]:
    width = 768
    for num_rows, length in ((1, 512), (8, 64), (64, 512), (128, 512), (512, 128), (2048, 128)):
        x = normal(num_rows * length, width)
        starts = torch.arange(num_rows + 1, device=DEVICE, dtype=torch.int32) * length
        out = normal(num_rows, width, dtype=torch.float32)
        yield Case(
            f"pooling/mean_{num_rows}x{length}",
            x.nbytes + out.nbytes,
            partial(pool, x, starts, "mean", normalise=True, out=out),
            partial(_mean, x.view(num_rows, length, width)),
            "torch mean, normalize",
        )


def _mean(x: Tensor) -> Tensor:
    return functional.normalize(x.mean(1, dtype=torch.float32))


def page_moves() -> Iterator[Case]:
    for count in (1, 16, 256, 2048):
        pages = normal(4, 4096, 2, 8, 16, 128)
        order = torch.randperm(4096, device=DEVICE)
        moves = torch.stack((order[:count], order[-count:]), dim=1).to(torch.int32).contiguous()
        yield Case(
            f"page_copy/{count}x4x64KiB",
            2 * 4 * count * pages[0, 0].nbytes,
            partial(copy_pages, pages, moves),
            partial(_move, pages, order[:count], order[-count:]),
            "torch index, index_put",
        )


def _move(pages: Tensor, source: Tensor, target: Tensor) -> None:
    pages[:, target] = pages[:, source]


def cases() -> Iterator[Case]:
    gathers_and_moves = (gathers, placements, rotaries, page_moves)
    for kind in (norms, softmaxes, activations, *gathers_and_moves, additions, encoder_embeddings, poolings):
        yield from kind()


def main() -> None:
    wanted = arguments(__doc__ or "", [ONLY])
    need_gpu()
    report = Report("scripts/bench/kernels.py", saves=wanted.save)
    timer, graph_timer = Timer(DEVICE), GraphTimer(DEVICE)
    limit = timer.copy_gb_per_s()
    report.add("kernel/copy/1GiB", "bandwidth", limit, "GB/s")
    for mebibytes in (32, 64):
        report.add(f"kernel/copy/{mebibytes}MiB", "bandwidth", timer.copy_gb_per_s(mebibytes << 20), "GB/s")
    for case in cases():
        if re.search(wanted.only, case.name):
            ours, theirs = measure(case, timer, report, limit)
            if ours > CLOSE * theirs:
                ours, theirs = graph_timer.medians_us([[case.ours], [case.theirs]])
                (dependent,) = graph_timer.medians_us([[case.ours]], programmatic=True)
                for metric, taken in (("graph_time", ours), ("graph_time_dependent", dependent)):
                    report.add(f"kernel/{case.name}", metric, taken, "us", peer=case.peer, peer_value=theirs)
    report.finish(save=wanted.save)


if __name__ == "__main__":
    main()
