"""Classes of workers as the dispatcher sees them: what a batch costs and may hold, and who waits for work. Pure.

Workers of one class (device, model revision, precision) share a cost table. In a mixed fleet every batch is cut for the
class that is to run it, by that class's table and to the size of its smallest worker.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from headrace.config import Settings
from headrace.errors import DecodeError
from headrace.heartbeat import WorkerInfo
from headrace.workers.costs.table import GUESSED_FIXED_MS, GUESSED_TOKEN_MS, CostTable
from headrace.workers.scheduler.partition import Limits

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerClass:
    """The living workers of one class.

    Attributes:
        name: "" where no worker lives, or where workers do not say.
        table: what batches cost there.
        limits: what each of them can hold.
        num_workers: alive; 0 only where no worker of any class is.
        max_rows: that they compute at a time, all together.
        kv_tokens: of their memory, all together.
        busy: part of their rows that is taken, 0 to 1.
    """

    name: str
    table: CostTable
    limits: Limits
    num_workers: int
    max_rows: int
    kv_tokens: int
    busy: float

    def hunger(self, num_waiting: int) -> tuple[float, float, float]:
        """Where it stands when classes are fed: the least goes first.

        Who has the fewest batches waiting a worker, then who has more rows free, then who is faster.
        """
        return num_waiting / max(1, self.num_workers), self.busy, self.table.cost(*_TYPICAL)

    def quarter(self) -> tuple[int, int]:
        """A quarter of a worker as they are on average: rows, one at least, and tokens of memory."""
        num_quarters = 4 * max(1, self.num_workers)
        return max(1, self.max_rows // num_quarters), self.kv_tokens // num_quarters


#: Length and rows by which the speed of classes is compared.
_TYPICAL = (64, 4)


class ClassBook:
    """What is known of the classes, from one look at the workers to the next."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._default = CostTable.linear(
            GUESSED_FIXED_MS, GUESSED_TOKEN_MS, settings.max_context_tokens, settings.batch_rows
        )
        self._tables: dict[str, CostTable] = {}
        self._encoded: dict[str, bytes] = {}
        self.classes: tuple[WorkerClass, ...] = (self._class("", ()),)

    def look(self, workers: Sequence[WorkerInfo], tables: Mapping[str, bytes]) -> None:
        """Take in who lives, and what their classes have published; a damaged table leaves the one there was."""
        for name in [name for name in self._tables if name not in tables]:
            del self._tables[name]
        for name, data in tables.items():
            if self._encoded.get(name) != data:
                self._read(name, data)
        self._encoded = dict(tables)
        members: dict[str, list[WorkerInfo]] = {}
        for worker in workers:
            members.setdefault(worker.worker_class, []).append(worker)
        self.classes = tuple(self._class(name, of_class) for name, of_class in sorted((members or {"": []}).items()))

    def limits(self, worker_class: WorkerClass, num_taken: int, taken_tokens: int) -> Limits:
        """What a batch may hold now, with so many of the workers' rows and so much of their memory taken.

        A batch that needs more than is free would wait at a worker, and all behind it. But where nearly nothing is
        free, it may still take a quarter of a worker of the class: rows end, and batches of one would cost more.

        Args:
            worker_class: that it is cut for.
            num_taken: rows; 0 where rows do not join a batch that runs.
            taken_tokens: what they may come to hold.
        """
        limits, num_workers = worker_class.limits, sum(found.num_workers for found in self.classes)
        if not num_workers:
            return limits
        # One worker at least has as much free as they have on average.
        free_rows = (sum(found.max_rows for found in self.classes) - num_taken) // num_workers
        free_tokens = (sum(found.kv_tokens for found in self.classes) - taken_tokens) // num_workers
        quarter_rows, quarter_tokens = worker_class.quarter()
        return replace(
            limits,
            max_rows=min(limits.max_rows, max(free_rows, quarter_rows)),
            max_kv_tokens=min(limits.max_kv_tokens, max(free_tokens, quarter_tokens)),
        )

    def least_ms(self, length: int) -> float:
        """What a request costs where it costs least, alone."""
        return min(found.table.cost(length, 1) for found in self.classes)

    def _read(self, name: str, data: bytes) -> None:
        try:
            self._tables[name] = CostTable.decode(data)
        except DecodeError as error:
            log.warning("class %s: keeping the cost table there was: %s", name or "(none)", error)

    def _class(self, name: str, workers: Sequence[WorkerInfo]) -> WorkerClass:
        settings, table = self._settings, self._tables.get(name, self._default)
        limits = Limits(
            min([settings.batch_rows, *(worker.max_rows for worker in workers)]),
            min([settings.max_batch_tokens, *(worker.kv_tokens for worker in workers)]),
            settings.max_prefill_tokens,
        )
        num_rows, max_rows = sum(w.num_rows for w in workers), sum(w.max_rows for w in workers)
        kv_tokens = sum(worker.kv_tokens for worker in workers)
        return WorkerClass(name, table, limits, len(workers), max_rows, kv_tokens, num_rows / max(1, max_rows))
