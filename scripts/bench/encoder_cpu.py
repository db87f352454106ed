"""Encoders on a CPU: all-MiniLM-L6-v2 in float32 and int8, beside transformers on the same weights in the same run.

Times are the best of the rounds, in turn, warm. ``fixed``: one row of a length; ``random``: 50 rows of 5 to 500 tokens
and 200 of 5 to 60, seed 0. transformers computes (sdpa) what is best for it of: row by row, sorted and padded in
batches of 8, 20 and 64. Errors: hidden states of tiny random models of every family, rows of 1 to 512 tokens;
similarities of sentences beside sentence-transformers'.
"""

import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from sentence_transformers import SentenceTransformer
from tests.model.tiny_encoders import CONFIGS, make_encoder, texts
from transformers import AutoModel, PreTrainedModel

import headrace
from headrace.testing.rows import Report, arguments
from headrace.workers.encoder.assembly import Precision, load_for
from headrace.workers.encoder.items import Embedding, EncoderItem
from headrace.workers.encoder.precision import SAMPLE_TEXTS, compare
from headrace.workers.encoder.runner import EncoderRunner
from headrace.workers.model_store.store import ModelFolder, default_cache_dir, resolve

CPU = torch.device("cpu")
PRECISIONS: tuple[Precision, ...] = ("float32", "int8")
BATCHES = (1, 8, 20, 64)
WINDOWS = {"50x5-500": (50, 5, 500), "200x5-60": (200, 5, 60)}

Rows = Sequence[tuple[int, ...]]


def drawn(num_rows: int, least: int, most: int) -> list[tuple[int, ...]]:
    """Random rows, seed 0."""
    source = random.Random(0)
    return [tuple(source.choices(range(1000, 30_000), k=source.randint(least, most))) for _ in range(num_rows)]


@torch.inference_mode()
def by_transformers(model: PreTrainedModel, rows: Rows, batch_rows: int) -> None:
    """Compute sorted rows in batches, each padded to its longest."""
    in_order = sorted(rows, key=len)
    for batch in (in_order[first : first + batch_rows] for first in range(0, len(rows), batch_rows)):
        longest = max(map(len, batch))
        ids = torch.tensor([row + (0,) * (longest - len(row)) for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
        model(input_ids=ids, attention_mask=mask)


def best_ms(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Time every way in turn."""
    best = dict.fromkeys(ways, float("inf"))
    for number in range(rounds + 1):
        for name, way in ways.items():
            begin_s = time.perf_counter()
            way()
            if number:
                best[name] = min(best[name], (time.perf_counter() - begin_s) * 1000)
    return best


def speeds(report: Report, folder: ModelFolder, rounds: int) -> None:
    """Compare times."""
    model = AutoModel.from_pretrained(folder.path).eval()
    runners = {name: EncoderRunner(load_for(folder.path, CPU, name)) for name in PRECISIONS}
    windows = {f"fixed/{length}": drawn(1, length, length) for length in (10, 100, 500)}
    windows |= {f"random/{name}": drawn(*window) for name, window in WINDOWS.items()}
    for name, rows in windows.items():
        items = [EncoderItem("embed", row) for row in rows]
        ways: dict[str, Callable[[], object]] = {
            f"headrace {precision}": partial(runner.run, items) for precision, runner in runners.items()
        }
        for size in BATCHES if len(rows) > 1 else (1,):
            ways[f"transformers {size}"] = partial(by_transformers, model, rows, size)
        found = best_ms(ways, rounds)
        peer = min((way for way in found if way.startswith("transformers")), key=found.__getitem__)
        for precision in runners:
            ours = found[f"headrace {precision}"]
            report.add(
                f"encoder/cpu/{precision}/{name}", "ms", ours, "ms", peer=peer, peer_value=found[peer], rounds=rounds
            )


def errors(report: Report, folder: ModelFolder) -> None:
    """Compare results."""
    exact, quantised = load_for(folder.path, CPU, "float32"), load_for(folder.path, CPU, "int8")
    oracle = SentenceTransformer(str(folder.path), device="cpu")
    rows = oracle.tokenizer(list(SAMPLE_TEXTS))["input_ids"]
    results = EncoderRunner(exact).run([EncoderItem("embed", tuple(row)) for row in rows])
    ours = torch.stack([result.vector for result in results if isinstance(result, Embedding)])
    theirs = torch.tensor(oracle.encode(list(SAMPLE_TEXTS)))
    error = float((ours @ ours.T - theirs @ theirs.T).abs().max())
    report.add("encoder/error/minilm", "similarity_error", error, "cosine", peer="sentence-transformers")
    loss = compare(folder.path, exact, quantised)
    report.add("encoder/int8/minilm", "min_cosine", loss.min_cosine, "cosine", peer="headrace float32")
    report.add("encoder/int8/minilm", "similarity_error", loss.max_similarity_error, "cosine", peer="headrace float32")
    for name in CONFIGS:
        model = make_encoder(name)
        worst = 0.0
        for row in texts(1, 2, 17, 64, 255, 512):
            ids = torch.tensor([row])
            with torch.inference_mode():
                expected = model(ids).last_hidden_state
            worst = max(worst, float((headrace.accelerate(model)(ids).last_hidden_state - expected).abs().max()))
        report.add(f"encoder/error/{name}", "hidden_state_error", worst, "abs", peer="transformers fp32")


def main() -> None:
    options = arguments(str(__doc__), [("rounds", 3, "measurements of each way, of which the best counts"),
                                       ("threads", 2, "of a product")])  # fmt: skip
    torch.set_num_threads(options.threads)
    folder = resolve("all-minilm-l6-v2", default_cache_dir())
    report = Report("scripts/bench/encoder_cpu.py")
    speeds(report, folder, options.rounds)
    errors(report, folder)
    report.finish(save=options.save)


if __name__ == "__main__":
    main()
