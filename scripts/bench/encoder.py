"""An encoder on a GPU beside transformers: BERT-base's shape in fp16, random weights.

``sentences``: 150 sentences of 5 to 500 tokens (seed 0), from ids on the host to hidden states on the device; packed in
one batch, and beside it transformers (sdpa) in batches of 1, 8, 20, 64 and 150, in the order of arrival and sorted,
padded, eager and compiled (``torch.compile``, dynamic). The peer is its best.

``batch1``: one row of 10, 100 and 500 tokens on the device, by ``headrace.accelerate``, beside transformers eager and
compiled for that very shape with ``mode="reduce-overhead"``, which replays graphs.

``packed``: 65,536 tokens packed, in operations a second of products and attention, beside the card's own rate (a
product of 8192 x 8192 x 8192).

Wall time around a synchronised call, median. Every result that is timed is checked against transformers' first.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

import headrace
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.rows import Report
from headrace.testing.state_dict import StateDict
from headrace.workers.encoder.loading import Encoder, build_encoder
from headrace.workers.encoder.tables import table_for

DEVICE, DTYPE = torch.device("cuda", 0), torch.float16
SIZES = (1, 8, 20, 64, 150)
LENGTHS = (10, 100, 500)
PARTS = ("batch1", "packed", "sentences")
SQUARE = 8192


def median_ms(run: Callable[[], object], repetitions: int) -> float:
    """Of calls that are waited for; two before them do not count."""
    times = []
    for repetition in range(repetitions + 2):
        torch.cuda.synchronize()
        begin_s = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if repetition > 1:
            times.append((time.perf_counter() - begin_s) * 1000)
    return statistics.median(times)


def tell(report: Report, case: str, metric: str, value: float, unit: str, **peer: Any) -> None:
    """Add a row, and say it at once: compiling takes transformers minutes, in which a run may be ended."""
    report.add(case, metric, value, unit, **peer)
    print(f"{case}: {value:.4g} {unit}", *peer.values(), flush=True)


def model_of(encoder: Any) -> Encoder:
    """Our encoder with a transformers model's weights."""
    tensors, config = encoder.state_dict(), encoder.config.to_dict() | {"architectures": ["BertModel"]}
    return build_encoder(config, StateDict(tensors), tensors, table_for(DEVICE), DTYPE)


def packed(ours: Encoder, rows: Sequence[Tensor]) -> Tensor:
    """From ids to hidden states, ``[num_tokens, hidden]``."""
    lengths = [len(row) for row in rows]
    positions = torch.cat([torch.arange(length) for length in lengths])
    return ours.model.forward(ours.operations.pack(torch.cat(list(rows)), positions, None, lengths))


def padded(theirs: Any, rows: Sequence[Tensor], size: int) -> list[Tensor]:
    """From ids to hidden states, a tensor ``[size, length, hidden]`` a batch."""
    found = []
    for begin in range(0, len(rows), size):
        some = rows[begin : begin + size]
        ids = torch.nn.utils.rnn.pad_sequence(list(some), batch_first=True)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(some):
            mask[number, : len(row)] = 1
        # Without padding no mask is needed, which transformers computes faster.
        given = {} if bool(mask.all()) else {"attention_mask": mask.to(DEVICE)}
        found.append(theirs(ids.to(DEVICE), **given).last_hidden_state)
    return found


def check(ours: Tensor, theirs: Tensor) -> None:
    """Raise RuntimeError where two fp16 models differ by more than their rounding."""
    off = (ours.float() - theirs.float()).abs().max().item()
    if not off < 0.05:
        raise RuntimeError(f"hidden states differ from transformers' by {off}")


def sentences(report: Report, ours: Encoder, theirs: Any, repetitions: int) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 501, (150,), generator=generator).tolist()
    rows = [torch.randint(1000, 30_000, (length,), generator=generator) for length in lengths]
    for row, hidden in zip(rows, torch.split_with_sizes(packed(ours, rows), lengths), strict=True):
        check(hidden, theirs(row[None].to(DEVICE)).last_hidden_state[0])
    time_ms = median_ms(partial(packed, ours, rows), repetitions)
    best: tuple[float, str] = (float("inf"), "")
    for way, model in (("eager", theirs), ("compiled", torch.compile(theirs, dynamic=True))):
        for size, order in product(SIZES, ("arrival", "sorted")):
            chosen = sorted(rows, key=len) if order == "sorted" else rows
            taken_ms = median_ms(partial(padded, model, chosen, size), 1 if size == 1 else 3)
            name = f"transformers {way}, {order}, batches of {size}"
            tell(report, f"encoder/bert_base/150_sentences/{way}_{order}_{size}", "time", taken_ms, "ms")
            best = min(best, (taken_ms, name))
    tell(report, "encoder/bert_base/150_sentences", "time", time_ms, "ms", peer=best[1], peer_value=best[0])


def batch1(report: Report, theirs: Any, repetitions: int) -> None:
    ours = headrace.accelerate(theirs)
    for length in LENGTHS:
        ids = torch.randint(1000, 30_000, (1, length), device=DEVICE)
        check(ours(ids).last_hidden_state, theirs(ids).last_hidden_state)
        time_ms = median_ms(partial(ours, ids), 10 * repetitions)
        check(ours(ids).last_hidden_state, theirs(ids).last_hidden_state)
        eager_ms = median_ms(partial(theirs, ids), 3 * repetitions)
        name = f"encoder/bert_base/1x{length}"
        tell(report, name, "time", time_ms, "ms", peer="transformers eager", peer_value=eager_ms)
        torch.compiler.reset()
        compiled = torch.compile(theirs, mode="reduce-overhead", dynamic=False)
        graph_ms = median_ms(partial(compiled, ids), 10 * repetitions)
        tell(report, name, "time", time_ms, "ms", peer="torch.compile reduce-overhead", peer_value=graph_ms)


def large(report: Report, ours: Encoder, repetitions: int) -> None:
    a, b = (torch.randn(SQUARE, SQUARE, device=DEVICE, dtype=DTYPE) for _ in range(2))
    limit = 2 * SQUARE**3 / median_ms(lambda: torch.mm(a, b), 10) / 1e9
    tell(report, "encoder/product", "rate", limit, "TFLOP/s")
    config = ours.model.config
    hidden, inner = config.hidden_size, config.intermediate_size
    for lengths in ([512] * 128, [128] * 512, list(_mixed(65_536))):
        rows = [torch.randint(1000, 30_000, (length,)) for length in lengths]
        batch = ours.operations.pack(
            torch.cat(rows), torch.cat([torch.arange(length) for length in lengths]), None, lengths
        )
        time_ms = median_ms(partial(ours.model.forward, batch), repetitions)
        layer = 2 * sum(lengths) * hidden * (4 * hidden + 2 * inner) + 4 * hidden * sum(n * n for n in lengths)
        rate = 12 * layer / time_ms / 1e9
        name = f"encoder/bert_base/packed_65536/{len(lengths)}_rows"
        tell(report, name, "rate", rate, "TFLOP/s", peer="product", peer_value=limit)


def _mixed(num_tokens: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(0)
    while num_tokens > 0:
        length = min(num_tokens, int(torch.randint(5, 501, (1,), generator=generator)))
        num_tokens -= length
        yield length


def main() -> None:
    """Measure the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repetitions", type=int, default=5, help="of the measurements (default 5)")
    parser.add_argument("--save", action="store_true", help="append the rows to docs/bench/results.jsonl")
    given = parser.parse_args()
    need_gpu()
    torch.manual_seed(0)
    with torch.device(DEVICE), torch.inference_mode(mode=False):
        theirs = BertModel(BertConfig(), add_pooling_layer=False).eval().to(DTYPE)
    ours, report = model_of(theirs), Report("scripts/bench/encoder.py", saves=given.save)
    with torch.inference_mode():
        if "packed" in given.parts:
            large(report, ours, given.repetitions)
        if "batch1" in given.parts:
            batch1(report, theirs, given.repetitions)
        if "sentences" in given.parts:
            sentences(report, ours, theirs, given.repetitions)
    report.finish(save=given.save)


if __name__ == "__main__":
    main()
