"""What a decode step costs the host: planning, bookkeeping, settling, and the message to the courier.

No model and no device: steps cost nothing, and their tokens are there at once. The host works while the device computes
the next step, so what it takes is lost only where it is more than a step takes. ``host/<rows>``: microseconds a step,
the median of many, of rows that decode with room to grow.
"""

import argparse
import statistics
import time
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from headrace.memory.pages import PageCopy, Pages
from headrace.testing.plain_params import plain_params
from headrace.testing.rows import Report
from headrace.workers.channel import Add, encode
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.launches import Launches
from headrace.workers.engine.places import Places
from headrace.workers.engine.plan import Chunk
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.runner import Draw, Drawn, Runner
from headrace.workers.engine.sequence import Sequence

ROWS = (1, 8, 32, 64, 128, 256)
PROMPT, PAGE_SIZE = 128, 64


@dataclass(frozen=True, slots=True)
class DoneStep:
    """A step that cost nothing."""

    rows: tuple[Sequence, ...]

    def finish(self) -> Drawn:
        """Token 5 for every row."""
        return Drawn(tuple(Draw(row, 5) for row in self.rows), 0.0)


class NoSteps:
    """Steps that only bring the state of the rows up to date.

    Args:
        rows: that state.
    """

    num_ahead = 1
    launches = Launches()

    def __init__(self, rows: RowState) -> None:
        self._rows = rows

    def reads_tokens(self, sequence: Sequence) -> bool:
        """No row's are read."""
        return False

    def places(self) -> Places:
        """Which rows have places."""
        return self._rows.places()

    def copy(self, copies: Rows[PageCopy]) -> None:
        """Copy nothing."""

    def start(self, chunks: Rows[Chunk]) -> DoneStep:
        """Compute nothing."""
        self._rows.enter(chunks)
        return DoneStep(tuple(chunk.sequence for chunk in chunks if chunk.samples))


def step_us(num_rows: int, num_steps: int) -> list[float]:
    """Time of each of so many steps in which all rows decode, in microseconds."""
    row_pages = -(-(PROMPT + 2 * num_steps) // PAGE_SIZE)
    pages = Pages(num_rows * row_pages, PAGE_SIZE, read_as_runs=False)
    loaded: Any = SimpleNamespace(eos_ids=frozenset({2}), model=SimpleNamespace(config=SimpleNamespace(vocab_size=99)))
    engine = Engine(
        loaded,
        Runner(NoSteps(RowState(num_rows, row_pages))),
        pages,
        max_rows=num_rows,
        step_tokens=num_rows * PROMPT,
        kv_tokens=num_rows * row_pages * PAGE_SIZE,
        row_tokens=row_pages * PAGE_SIZE,
    )
    for row in range(num_rows):
        engine.add(Add(row, (row % 97,) * PROMPT, (), plain_params(2 * num_steps)))
    while len(engine.step().tokens) < num_rows:
        pass
    taken: list[float] = []
    for _ in range(num_steps):
        begin = time.perf_counter()
        encode(engine.step())
        taken.append((time.perf_counter() - begin) * 1e6)
    return taken


def main() -> None:
    """Measure each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="steps of each number of rows (default 300)")
    parser.add_argument("--save", action="store_true", help="append the rows to docs/bench/results.jsonl")
    given = parser.parse_args()
    report = Report("scripts/bench/host.py")
    for num_rows in ROWS:
        report.add(f"host/{num_rows}", "us_per_step", statistics.median(step_us(num_rows, given.steps)), "us")
    report.finish(save=given.save)


if __name__ == "__main__":
    main()
