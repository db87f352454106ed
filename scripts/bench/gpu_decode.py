"""What a decode step takes on a GPU, at the engine's public call.

Models in full size with random weights, bf16. ``decode/<shape>/<rows>``: rows with prompts of 128 tokens are added at
once and run to 256 new tokens, and to one: (T256 - T1) / 255 of wall time, in ms, with admission, sampling, stop checks
and token ids on the host. The median of several rounds; prompts differ from round to round, so that no beginning is
found again.
"""

import argparse
import gc
import statistics
import time

import torch

from headrace.job import SamplingParams
from headrace.testing.full_shapes import SHAPES, loader
from headrace.testing.rows import Report
from headrace.workers.channel import Add
from headrace.workers.engine.device_engine import DeviceEngine, DeviceLimits
from headrace.workers.engine.engine import Engine

ROWS = (1, 8, 32, 64, 128, 256)
PROMPT, NEW = 128, 256


def seconds(engine: Engine, num_rows: int, num_new: int, generator: torch.Generator) -> float:
    """Wall time of ``num_rows`` requests from their arrival to their last token."""
    params = SamplingParams(num_new, 0, 0.0, 0, 1.0, 0.0, 0, (), (), True)
    prompts = torch.randint(0, 30_000, (num_rows, PROMPT), generator=generator).tolist()
    begin_s = time.perf_counter()
    for row, prompt in enumerate(prompts):
        engine.add(Add(row, tuple(prompt), (), params))
    num_tokens = 0
    while engine.has_rows:
        num_tokens += len(engine.step().tokens)
    taken_s = time.perf_counter() - begin_s
    if num_tokens != num_rows * num_new:
        raise RuntimeError(f"{num_tokens} tokens, not {num_rows * num_new}")
    return taken_s


def main() -> None:
    """Measure each shape and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measurements, of which the median counts (default 5)")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--save", action="store_true", help="append the rows to docs/bench/results.jsonl")
    given = parser.parse_args()
    report = Report("scripts/bench/gpu_decode.py")
    for shape in given.shapes:
        limits = DeviceLimits(max_rows=max(ROWS), row_tokens=1024, step_tokens=2048)
        begin_s = time.perf_counter()
        made = DeviceEngine(loader(SHAPES[shape]), torch.device("cuda"), torch.bfloat16, limits)
        print(f"{shape}: engine after {time.perf_counter() - begin_s:.1f} s", flush=True)
        generator = torch.Generator().manual_seed(0)
        for num_rows in ROWS:
            seconds(made.engine, num_rows, 4, generator)
            rounds = [
                (seconds(made.engine, num_rows, NEW, generator) - seconds(made.engine, num_rows, 1, generator))
                / (NEW - 1)
                for _ in range(given.rounds)
            ]
            report.add(f"decode/{shape}/{num_rows}", "ms_per_step", statistics.median(rounds) * 1000, "ms")
        del made
        gc.collect()
        torch.cuda.empty_cache()
    report.finish(save=given.save)


if __name__ == "__main__":
    main()
