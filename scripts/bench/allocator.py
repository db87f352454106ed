"""Where an encoder's activations lie: ours beside TurboTransformers' chunks, greedy-by-size and torch's own allocator.

The results of a pass are those that the model's operations write, traced. ``worst``: over every length from 5 to 500,
the most that a plan takes, over what no plan can do without (the results that live at the same time). ``plan``: time to
plan, or to look up, a length that has not been seen before, and that over the time of a request of this length on the
device named, launched operation by operation.

On a GPU 150 lengths (seed 0) are computed twice, by our arena and by torch's caching allocator: what each holds then,
and what the second round has taken from the device. ``planning``: what a round spends in our arena, of all its time,
each request awaited, its batch packed and sent in that time too: of the first round, when lengths are new; of the
second, when they are not; and as a model runs by itself, with graphs, when these have been captured.

Greedy-by-size: Pisarchyk, Lee: Efficient memory management for deep neural net inference, 2020 (arXiv:2001.03288); it
is what ``memory.planner`` does where all lies in one piece. Chunks: ``memory.planner`` with chunks of 2 MiB and more.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from unittest import mock

import torch
from torch import Tensor

from headrace.kernels.encoder_reference import EncoderReference
from headrace.kernels.encoder_table import EncoderBatch
from headrace.kernels.planned_encoder import PlannedEncoder
from headrace.kernels.table import Linear
from headrace.memory.planner import Buffer, lay_out, lower_bound_bytes
from headrace.memory.token_arena import TokenArena, TokenResult
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.rows import Report
from headrace.testing.state_dict import RandomWeights
from headrace.workers.encoder.loading import Encoder, build_encoder
from headrace.workers.encoder.runtimes import DeviceRuntime
from headrace.workers.encoder.tables import table_for

LENGTHS = range(5, 501)
COMMON = {"architectures": ["BertModel"], "model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512}
SHAPES = {
    "bert_base": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "minilm": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12},
}


class WritingReference(EncoderReference):
    """The reference, but products write where they are told, as a GPU's do; oneDNN's insist on memory of their own."""

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Keep the weight as it is."""
        return Linear(weight, bias)


def load(shape: str, table: PlannedEncoder | EncoderReference, dtype: torch.dtype, device: torch.device) -> Encoder:
    return build_encoder({**COMMON, **SHAPES[shape]}, RandomWeights(device), (), table, dtype)


def batch(encoder: Encoder, length: int) -> EncoderBatch:
    ids = torch.randint(1000, 30_000, (length,))
    return encoder.operations.pack(ids, torch.arange(length), None, [length])


def traced(encoder: Encoder, table: PlannedEncoder) -> list[TokenResult]:
    """What a pass writes."""
    runtime = encoder.model.runtime
    if isinstance(runtime, DeviceRuntime):
        runtime.allocator = "torch"  # or the runtime traces a first pass of its own, and ours notes nothing
    with table.traced() as trace:
        trace.close(encoder.model.forward(batch(encoder, 1)))
    if isinstance(runtime, DeviceRuntime):
        runtime.allocator = "planned"
    return [TokenResult(each.first_op, each.last_op, each.width, each.dtype) for each in trace.written]


def buffers(results: Sequence[TokenResult], num_tokens: int) -> list[Buffer]:
    return [Buffer(each.first_op, each.last_op, each.num_bytes * num_tokens) for each in results]


def in_one_piece(laid: Sequence[Buffer]) -> int:
    """Bytes that greedy-by-size takes."""
    layout = lay_out(laid, size=lambda _: sum(each.num_bytes + 64 for each in laid))
    return max(place.offset + each.num_bytes for place, each in zip(layout.places, laid, strict=True))


def planned(report: Report, shape: str, results: Sequence[TokenResult], request_us: Callable[[int], float]) -> None:
    """All lengths, by each way."""
    arena, cpu = TokenArena(results, torch.device("cpu")), torch.device("cpu")
    ways: dict[str, Callable[[int], int]] = {
        "ours": arena.planned_bytes,
        "greedy_by_size": lambda length: in_one_piece(buffers(results, length)),
        "chunks": lambda length: sum(lay_out(buffers(results, length)).chunk_bytes),
    }
    for name, way in ways.items():
        worst = max(way(length) / lower_bound_bytes(buffers(results, length)) for length in LENGTHS)
        report.add(f"allocator/{shape}/{name}", "worst", worst, "of the lower bound")
    sampled = LENGTHS[::9]
    lookups = TokenArena(results, cpu)
    lookups.place(LENGTHS[-1])
    timed: dict[str, Callable[[int], object]] = {
        "ours": lookups.place,
        "greedy_by_size": ways["greedy_by_size"],
        "chunks": ways["chunks"],
    }
    for name, plan in timed.items():
        times_us, shares = [], []
        for length in sampled:
            begin_s = time.perf_counter()
            plan(length)
            times_us.append((time.perf_counter() - begin_s) * 1e6)
            shares.append(times_us[-1] / request_us(length))
        report.add(f"allocator/{shape}/{name}", "plan_time", statistics.median(times_us), "us")
        report.add(f"allocator/{shape}/{name}", "plan", 100 * statistics.mean(shares), "% of a request")


def planning_share(encoder: Encoder, lengths: Sequence[int]) -> float:
    """Compute a row of each length, one after the other; time spent in ``TokenArena.place``, of all time."""
    place, spent_s = TokenArena.place, 0.0

    def timed(arena: TokenArena, num_tokens: int) -> tuple[Tensor, ...]:
        nonlocal spent_s
        begin_s = time.perf_counter()
        views = place(arena, num_tokens)
        spent_s += time.perf_counter() - begin_s
        return views

    with mock.patch.object(TokenArena, "place", timed):
        begin_s = time.perf_counter()
        for length in lengths:
            encoder.model.forward(batch(encoder, length)).cpu()
        return spent_s / (time.perf_counter() - begin_s)


def on_gpu(report: Report, shape: str, encoder: Encoder) -> None:
    """What 150 lengths spend on planning, what is held after them, and what a second round takes."""
    runtime = encoder.model.runtime
    assert isinstance(runtime, DeviceRuntime), "a GPU's encoder has a GPU's runtime"
    lengths = torch.randint(5, 501, (150,), generator=torch.Generator().manual_seed(0)).tolist()
    for order in ("first", "second"):
        share = 100 * planning_share(encoder, lengths)
        report.add(f"allocator/{shape}/cuda_planned", f"planning of the {order} round", share, "% of its time")
    for allocator in ("torch", "planned"):
        runtime.allocator = allocator
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_stats()
        for round_number in range(2):
            if round_number:
                middle = torch.cuda.memory_stats()
            for length in lengths:
                encoder.model.forward(batch(encoder, length))
        torch.cuda.synchronize()
        after = torch.cuda.memory_stats()
        held = after["reserved_bytes.all.current"] - before["reserved_bytes.all.current"]
        name = f"allocator/{shape}/cuda_{allocator}"
        report.add(name, "held", held / 2**20, "MiB")
        taken = after["segment.all.allocated"] - middle["segment.all.allocated"]
        report.add(name, "device allocations of the second round", taken, "allocations")
        asked = after["allocation.all.allocated"] - middle["allocation.all.allocated"]
        report.add(name, "tensors of the second round", asked / len(lengths), "a request")
    report.add(f"allocator/{shape}/cuda_planned", "arena", runtime.arena.num_bytes / 2**20, "MiB")
    runtime.uses_graphs = True
    planning_share(encoder, lengths)
    share = 100 * planning_share(encoder, lengths)
    report.add(f"allocator/{shape}/cuda_graphs", "planning of the second round", share, "% of its time")


def main() -> None:
    """Measure each shape on the device that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--save", action="store_true", help="append the rows to docs/bench/results.jsonl")
    given = parser.parse_args()
    if given.device != "cpu":
        need_gpu()
    report, on_cpu = Report("scripts/bench/allocator.py", saves=given.save), given.device == "cpu"
    device = torch.device("cpu") if on_cpu else torch.device("cuda", 0)
    dtype = torch.float32 if on_cpu else torch.float16
    for shape in given.shapes:
        table = PlannedEncoder(WritingReference(), device) if on_cpu else table_for(device)
        assert isinstance(table, PlannedEncoder), "a GPU's table plans"
        with torch.inference_mode():
            encoder = load(shape, table, dtype, device)
            computed = load(shape, EncoderReference(), dtype, device) if on_cpu else encoder
            known: dict[int, float] = {}
            if isinstance(encoder.model.runtime, DeviceRuntime):
                encoder.model.runtime.uses_graphs = False  # what is replayed has been planned when it was captured

            def request_us(length: int, encoder: Encoder = computed, known: dict[int, float] = known) -> float:
                # In steps of 50: what is measured is a share.
                rounded = max(5, length // 50 * 50)
                if rounded not in known:
                    times = []
                    for _ in range(4):
                        begin_s = time.perf_counter()
                        encoder.model.forward(batch(encoder, rounded)).cpu()
                        times.append((time.perf_counter() - begin_s) * 1e6)
                    known[rounded] = min(times)
                return known[rounded]

            planned(report, f"{shape}/{given.device}", traced(encoder, table), request_us)
            if not on_cpu:
                on_gpu(report, shape, encoder)
    report.finish(save=given.save)


if __name__ == "__main__":
    main()
