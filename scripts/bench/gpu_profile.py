"""Every kernel of a step: which are ours, which are products, how often and how long.

Steps of three kinds are taken by the profiler on a model in full size with random weights: a prompt in chunks, rows
that decode, and both together. Everything but matrix products and copies must come from kernels/cuda; the script ends
with status 1 if anything else ran.
"""

import argparse
import sys

import torch

from headrace.testing.full_shapes import SHAPES, loader
from headrace.testing.gpu_profile import Launches, profile_steps
from headrace.workers.engine.device_engine import DeviceEngine, DeviceLimits


def main() -> int:
    """Print a table for each kind of step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="Q06")
    parser.add_argument("--rows", type=int, default=8, help="rows that decode together (default 8)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    given = parser.parse_args()
    limits = DeviceLimits(max_rows=max(16, given.rows), row_tokens=2048, step_tokens=1024, kv_tokens=65536)
    made = DeviceEngine(loader(SHAPES[given.shape]), torch.device("cuda"), getattr(torch, given.dtype), limits)
    strangers: set[str] = set()
    for kind, launches in profile_steps(made, given.rows):
        print(f"\n{given.shape}, {kind}: {sum(one.microseconds for one in launches):.0f} us on the GPU")
        for one in sorted(launches, key=lambda one: -one.microseconds):
            print(f"  {one.origin:<8} {one.count:>5} x {one.microseconds / one.count:>8.1f} us  {one.name[:90]}")
        strangers |= {one.name for one in launches if one.origin == Launches.OTHER}
    print(f"\nneither ours nor products: {', '.join(sorted(strangers)) or 'none'}")
    return 1 if strangers else 0


if __name__ == "__main__":
    sys.exit(main())
