"""Every kernel of a step, and where each microsecond of a step goes in which all rows decode.

First steps in which so many rows decode (prompts of 128 tokens, greedy): what the GPU runs, or that it runs nothing, by
torch's profiler; the parts add up to the step. Beside it is what the step takes without the profiler.

Then steps of three kinds: a prompt in chunks, rows that decode, and both together. Everything but matrix products and
copies must come from kernels/cuda; the script ends with status 1 if anything else ran.

Models in full size, random weights.
"""

import argparse
import gc
import sys

import torch

from headrace.testing.full_shapes import SHAPES, loader
from headrace.testing.gpu_profile import Launches, profile_steps
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.rows import Report
from headrace.testing.step_profile import profile_decode
from headrace.workers.engine.device_engine import DeviceEngine, DeviceLimits


def decode(report: Report, made: DeviceEngine, shape: str, num_rows: int) -> None:
    """Print the parts of a step, and keep them as rows."""
    found = profile_decode(made.engine, num_rows, int(SHAPES[shape]["vocab_size"]))
    case = f"profile/{shape}/{num_rows}"
    print(f"\n{shape}, {num_rows} rows that decode: {found.step_us:.1f} us a step; {found.wall_us:.1f} unprofiled")
    for part in found.parts:
        print(f"  {part.us:>9.1f} us  {part.us / found.step_us:>6.1%}  {part.launches:>6.1f} x  {part.name[:90]}")
        report.add(case, part.name, part.us, "us", peer="the step", peer_value=found.step_us)
    report.add(case, "step", found.step_us, "us", peer="without the profiler", peer_value=found.wall_us)
    sys.stdout.flush()


def kinds(made: DeviceEngine, shape: str, num_rows: int) -> set[str]:
    """Print the launches of each kind of step; what is neither ours nor a product or copy."""
    strangers: set[str] = set()
    for kind, launches in profile_steps(made, num_rows):
        print(f"\n{shape}, {kind}: {sum(one.microseconds for one in launches):.0f} us on the GPU")
        for one in sorted(launches, key=lambda one: -one.microseconds):
            print(f"  {one.origin:<8} {one.count:>5} x {one.microseconds / one.count:>8.1f} us  {one.name[:90]}")
        strangers |= {one.name for one in launches if one.origin == Launches.OTHER}
    return strangers


def main() -> int:
    """Print the tables of each shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--decode", nargs="*", type=int, default=[1, 256], help="rows that decode (default 1 256)")
    parser.add_argument("--rows", type=int, default=8, help="of the steps of three kinds (default 8; 0: none)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--save", action="store_true", help="append the parts to docs/bench/results.jsonl")
    given = parser.parse_args()
    need_gpu()
    report = Report("scripts/bench/gpu_profile.py", saves=given.save)
    max_rows = max(16, given.rows, *given.decode)
    limits = DeviceLimits(max_rows=max_rows, row_tokens=2048, step_tokens=max(1024, max_rows), kv_tokens=512 * max_rows)
    strangers: set[str] = set()
    for shape in given.shapes:
        made = DeviceEngine(loader(SHAPES[shape]), torch.device("cuda"), getattr(torch, given.dtype), limits)
        for num_rows in given.decode:
            decode(report, made, shape, num_rows)
        if given.rows:
            strangers |= kinds(made, shape, given.rows)
        del made
        gc.collect()
    print(f"\nneither ours nor products: {', '.join(sorted(strangers)) or 'none'}")
    report.finish(save=given.save)
    return 1 if strangers else 0


if __name__ == "__main__":
    sys.exit(main())
