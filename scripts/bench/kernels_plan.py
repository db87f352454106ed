"""How long the plan of decode attention takes: a launch among launches in a graph, and where launches may begin early.

8 heads of keys, pages of 16 tokens. A case is ``kernel/decode_plan/<rows>x<keys>``; ``ragged`` are 100 to 2,047 keys.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from headrace.kernels.decode_attention import DecodeAttention
from headrace.kernels.decode_shape import DecodeShape
from headrace.testing.graph_timing import GraphTimer
from headrace.testing.needed_gpu import need_gpu
from headrace.testing.rows import ONLY, Report, arguments

DEVICE = torch.device("cuda", 0)
SHAPE = DecodeShape(num_kv_heads=8, group=4, head_dim=128, dtype=torch.bfloat16, max_rows=2048, max_pages=128)


@dataclass(frozen=True, slots=True)
class Case:
    """Rows of ``least`` to ``most`` keys."""

    keys: str
    num_rows: int
    least: int
    most: int

    @property
    def name(self) -> str:
        """As rows have it."""
        return f"{self.num_rows}x{self.keys}"

    def lengths(self) -> torch.Tensor:
        """Keys of each row, int32 ``[num_rows]``, the same in every run."""
        drawn = torch.Generator().manual_seed(0)
        lengths = torch.randint(self.least, self.most + 1, (self.num_rows,), generator=drawn, dtype=torch.int32)
        return lengths.to(DEVICE)


def cases() -> Iterator[Case]:
    for num_rows, keys in ((1, 208), (8, 208), (64, 208), (64, 1024), (256, 208)):
        yield Case(str(keys), num_rows, keys, keys)
    yield Case("ragged", 256, 100, 2047)
    for num_rows in (512, 1500):
        yield Case("100to300", num_rows, 100, 300)


def main() -> None:
    wanted = arguments(__doc__ or "", [ONLY])
    need_gpu()
    report, timer = Report("scripts/bench/kernels_plan.py", saves=wanted.save), GraphTimer(DEVICE)
    attention = DecodeAttention(SHAPE, DEVICE)
    for case in (case for case in cases() if re.search(wanted.only, case.name)):
        plan = [[partial(attention.plan, case.lengths())]]
        for metric, programmatic in (("time", False), ("time_dependent", True)):
            (time_us,) = timer.medians_us(plan, programmatic=programmatic)
            report.add(f"kernel/decode_plan/{case.name}", metric, time_us, "us")
    report.finish(save=wanted.save)


if __name__ == "__main__":
    main()
