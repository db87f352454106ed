"""What attention adds to a decode step between the products before and after it, as a step's graph runs them.

A case is ``kernel/step_attention/<model>/<rows>x<keys>``: a graph of all layers, each the product of queries, keys and
values, rotation, attention and the product of its output, less the same graph without rotation and attention, a layer.
So a launch that begins while the product before it ends, or whose end hides behind the next one's start, counts for as
much as the step gains. Keys lie in pages of 16 tokens as an engine's do, a page covering all layers; weights and keys
of other layers leave nothing in the cache. Kernels of ours begin early. ``apart`` is rotation and attention in two
launches, whatever the step would choose; ``fused`` one launch, where it would. The floor reads the keys and values
once, at the speed that 4 GiB are read at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from headrace.kernels.decode_attention import DecodeAttention
from headrace.kernels.decode_shape import DecodeShape, choose_fused_ring
from headrace.kernels.device import open_device
from headrace.kernels.heads import HeadNorm, heads_of
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.rotary import Rotary
from headrace.kernels.rotary_kv import rotary_kv
from headrace.kernels.thin_product import ThinProduct
from headrace.testing.full_shapes import SHAPES
from headrace.testing.graph_timing import GraphTimer
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.rows import Report, arguments

DEVICE, DTYPE = torch.device("cuda", 0), torch.bfloat16
NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE = 8, 128, 16
REPETITIONS = 7
# Rows up to which the products are ours, so that attention may begin before the one before it has ended.
MOST_THIN = 8
CASES = [
    *((rows, (keys,) * rows) for rows in (1, 8, 32, 64, 128, 256) for keys in (128, 208, 256, 384)),
    *((rows, (keys,) * rows) for rows, keys in ((1, 4000), (8, 4000))),
    (256, tuple(torch.randint(100, 2048, (256,), generator=torch.Generator().manual_seed(0)).tolist())),
]


@dataclass(frozen=True, slots=True)
class Model:
    """Weights of every layer's two products; the norm of heads, where there is one."""

    num_heads: int
    qkv: Sequence[Tensor]
    out: Sequence[Tensor]
    norm: HeadNorm | None

    @classmethod
    def random(cls, name: str) -> "Model":
        config = SHAPES[name]
        num_heads, hidden, num_layers = (
            config[key] for key in ("num_attention_heads", "hidden_size", "num_hidden_layers")
        )
        width, queries = (num_heads + 2 * NUM_KV_HEADS) * HEAD_DIM, num_heads * HEAD_DIM
        weight = torch.rand(HEAD_DIM, device=DEVICE).to(DTYPE) + 0.5
        return cls(
            num_heads,
            [_normal(width, hidden) / hidden**0.5 for _ in range(num_layers)],
            [_normal(hidden, queries) / queries**0.5 for _ in range(num_layers)],
            HeadNorm(weight, weight, 1e-6) if "Qwen3ForCausalLM" in config["architectures"] else None,
        )


class Chain:
    """The layers of a step."""

    def __init__(self, model: Model, lengths: Sequence[int], layers: Sequence[KVPages]) -> None:
        self._model, self._layers, num_rows = model, layers, len(lengths)
        self._lengths = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
        self._positions = self._lengths - 1
        hidden, width = model.out[0].shape[0], model.qkv[0].shape[0]
        self._x, self._y = _normal(num_rows, hidden), _normal(num_rows, hidden)
        self._qkv, self._seen = _normal(num_rows, width), _normal(num_rows, model.num_heads, HEAD_DIM)
        angles = torch.rand(2, num_rows, HEAD_DIM // 2, device=DEVICE)
        self._rotary = Rotary(angles[0], angles[1])
        self._thin = num_rows <= MOST_THIN
        self._products = [
            [ThinProduct(weight, None) for weight in weights] if self._thin else [weight.T for weight in weights]
            for weights in (model.qkv, model.out)
        ]
        group, max_pages = model.num_heads // NUM_KV_HEADS, layers[0].page_table.shape[1]
        shape = DecodeShape(NUM_KV_HEADS, group, HEAD_DIM, DTYPE, num_rows, max_pages, PAGE_SIZE)
        self._ways = {"apart": DecodeAttention(shape, DEVICE)}
        device = open_device(0)
        if ring := choose_fused_ring(shape, num_rows, device.shared_bytes, device.num_sms):
            heads = heads_of(HEAD_DIM, self._rotary, model.norm is not None, DTYPE.itemsize)
            self._ways["fused"] = DecodeAttention(shape, DEVICE, ring=ring, heads=heads)
        for attention in self._ways.values():
            attention.plan(self._lengths)

    @property
    def ways(self) -> list[str]:
        """In which attention may be run: "fused" where the step would choose it."""
        return list(self._ways)

    def run(self, way: str | None) -> None:
        """All layers, with "apart" or "fused" attention or without any."""
        for layer, pages in enumerate(self._layers):
            self._multiply(0, layer, self._x, self._qkv)
            if way == "fused":
                self._ways[way].run_fused(
                    *(self._seen, self._qkv, pages, self._lengths),
                    rotary=self._rotary,
                    norm=self._model.norm,
                    old_is_settled=True,
                )
            elif way == "apart":
                query = self._qkv.view(len(self._x), -1, HEAD_DIM)[:, : self._model.num_heads]
                rotary_kv(
                    *(self._qkv, self._positions, pages),
                    num_heads=self._model.num_heads,
                    rotary=self._rotary,
                    norm=self._model.norm,
                    out=query,
                )
                self._ways[way].run(self._seen, query, pages, self._lengths, old_is_settled=True)
            self._multiply(1, layer, self._seen.flatten(1), self._y)

    def _multiply(self, which: int, layer: int, x: Tensor, out: Tensor) -> None:
        product = self._products[which][layer]
        if isinstance(product, ThinProduct):
            product(x, out)
        else:
            torch.mm(x, product, out=out)


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=DTYPE)


def pages_of(lengths: Sequence[int], num_layers: int) -> list[KVPages]:
    counts = [-(-length // PAGE_SIZE) for length in lengths]
    memory = torch.empty(sum(counts), num_layers, 2, NUM_KV_HEADS, PAGE_SIZE, HEAD_DIM, device=DEVICE, dtype=DTYPE)
    memory.normal_()
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    for row, ids in enumerate(torch.split_with_sizes(torch.randperm(sum(counts), dtype=torch.int32), counts)):
        table[row, : len(ids)] = ids
    on_device = table.to(DEVICE)
    return [KVPages(memory[:, layer, 0], memory[:, layer, 1], on_device) for layer in range(num_layers)]


def main() -> None:
    wanted = arguments(__doc__ or "")
    need_gpu()
    report, timer = Report("scripts/bench/kernels_step_attention.py", saves=wanted.save), GraphTimer(DEVICE)
    read_gb_per_s = timer.read_gb_per_s()
    report.add("kernel/read/4GiB", "bandwidth", read_gb_per_s, "GB/s")
    for name in SHAPES:
        model = Model.random(name)
        num_layers = len(model.qkv)
        for rows, lengths in CASES:
            chain = Chain(model, lengths, pages_of(lengths, num_layers))
            graphs = [[partial(chain.run, way)] for way in (None, *chain.ways)]
            none_us, *times_us = (
                time_us / num_layers for time_us in timer.medians_us(graphs, REPETITIONS, programmatic=True)
            )
            keys = lengths[0] if len(set(lengths)) == 1 else "ragged"
            case = f"kernel/step_attention/{name}/{rows}x{keys}"
            floor_us = sum(lengths) * 2 * NUM_KV_HEADS * HEAD_DIM * DTYPE.itemsize / read_gb_per_s / 1e3
            for way, time_us in zip(chain.ways, times_us, strict=True):
                report.add(case, f"time_{way}", time_us - none_us, "us", peer="reading", peer_value=floor_us)
            del chain
    report.finish(save=wanted.save)


if __name__ == "__main__":
    main()
