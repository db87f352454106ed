"""What a decode step takes on a GPU, at the engine's public call: the cases ``decode/<shape>/<rows>`` alone.

``headrace bench gpu`` has these and all others.
"""

import argparse

from headrace.bench.bench import Bench, Effort
from headrace.bench.decode_cases import cases
from headrace.bench.machine import Machine
from headrace.bench.run import run
from headrace.testing.full_shapes import SHAPES
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.rows import Report


def main() -> None:
    """Measure each shape and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measurements, of which the median counts (default 5)")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--save", action="store_true", help="append the rows to docs/bench/results.jsonl")
    given = parser.parse_args()
    need_gpu()
    report = Report("scripts/bench/gpu_decode.py")
    with Bench(Machine.gpu(), SHAPES, Effort(given.rounds)) as bench:
        failures = run(bench, [case for shape in given.shapes for case in cases(shape)], report, save=given.save)
    report.finish(save=given.save)
    if failures:
        raise SystemExit("; ".join(failures))


if __name__ == "__main__":
    main()
