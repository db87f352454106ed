"""Steps in which rows decode beside prompts, launched kernel by kernel and replayed as graphs: wall time of each.

``mixed/<model>/<rows>+<tokens>``: milliseconds a step, of the GPU and the host together, where prompts of so many
tokens in all, none longer than 1,024, come with every step. Random weights; needs a GPU, and memory for the model.
"""

import argparse
import itertools
import statistics
import time

import torch

from headrace.testing.full_shapes import SHAPES, loader
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.plain_params import plain_params
from headrace.testing.rows import Report
from headrace.workers.channel import Add
from headrace.workers.engine.device_engine import DeviceEngine, DeviceLimits

MIXTURES = ("0+512", "64+500", "256+256", "0+2048", "0+8192")
_NEW_TOKENS = 1000
_LONGEST_PROMPT = 1024


class Mixtures:
    """One model's engine, and prompts for it.

    Args:
        shape: which model.
        prompt_graphs: graphs of steps with prompts that it may keep.
    """

    def __init__(self, shape: str, prompt_graphs: int) -> None:
        limits = DeviceLimits(
            max_rows=272, row_tokens=2048, step_tokens=8192 + 272, kv_tokens=400_000, prompt_graphs=prompt_graphs
        )
        made = DeviceEngine(loader(SHAPES[shape]), torch.device("cuda"), torch.bfloat16, limits)
        self._engine = made.engine
        self._device = made.device
        self._numbers = itertools.count()
        self._generator = torch.Generator().manual_seed(0)

    def _add_prompts(self, num_tokens: int) -> None:
        for start in range(0, num_tokens, _LONGEST_PROMPT):
            self._add(min(_LONGEST_PROMPT, num_tokens - start), 1)

    def _add(self, num_tokens: int, num_new: int) -> None:
        prompt = torch.randint(0, 30_000, (num_tokens,), generator=self._generator).tolist()
        self._engine.add(Add(next(self._numbers), tuple(prompt), (), plain_params(num_new)))

    def step_ms(self, num_rows: int, num_tokens: int, num_steps: int) -> tuple[float, float]:
        """Wall time of a step, and the median of what steps took the GPU, in milliseconds."""
        self._engine.clear()
        for _ in range(num_rows):
            self._add(64, _NEW_TOKENS)
        for _ in range(4 if num_rows else 0):
            self._engine.step()
        for _ in range(8):  # seen, and then captured
            self._add_prompts(num_tokens)
            self._engine.step()
        torch.cuda.synchronize(self._device)
        begin_s = time.perf_counter()
        steps = []
        for _ in range(num_steps):
            self._add_prompts(num_tokens)
            steps.append(self._engine.step().step_ms)
        torch.cuda.synchronize(self._device)
        return (time.perf_counter() - begin_s) * 1000 / num_steps, statistics.median(steps)


def main() -> None:
    """Measure each mixture both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(SHAPES), action="append", help="default: all")
    parser.add_argument(
        "--mixture", choices=MIXTURES, action="append", help="decoding rows + prompts' tokens; default: all"
    )
    parser.add_argument("--steps", type=int, default=20, help="steps of each mixture (default 20)")
    parser.add_argument("--save", action="store_true", help="append the rows to docs/bench/results.jsonl")
    given = parser.parse_args()
    need_gpu()
    report = Report("scripts/bench/mixed_steps.py")
    for shape in given.model or sorted(SHAPES):
        for way, prompt_graphs in (("launches", 0), ("graphs", 48)):
            mixtures = Mixtures(shape, prompt_graphs)
            for mixture in given.mixture or MIXTURES:
                num_rows, num_tokens = map(int, mixture.split("+"))
                num_steps = given.steps if num_tokens < 4096 else max(1, given.steps // 4)
                wall_ms, gpu_ms = mixtures.step_ms(num_rows, num_tokens, num_steps)
                name = f"mixed/{shape}/{mixture}/{way}"
                report.add(name, "ms_per_step", wall_ms, "ms")
                report.add(name, "ms_of_gpu", gpu_ms, "ms")
            del mixtures
    report.finish(save=given.save)


if __name__ == "__main__":
    main()
