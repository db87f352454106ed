"""From a window to a plan, by the settings ``batching`` and ``objective``. Pure.

=========  ===========================================================================================
none       every request alone, in order
naive      in order, as many as the limits of a batch take
sorted     in order of length, as many as the limits take
packed     runs of the order, priced without padding
dp         runs in order of length, priced with padding: total cost, mean completion or deadline misses
auto       packed, or dp where that is cheaper for this very window by more than measured costs err by
=========  ===========================================================================================

None of them looks past the window. Urgency is the score that a request got at admission, so a request that waits grows
no older here: those that come later have higher scores.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from headrace.config import Batching, Objective
from headrace.workers.costs.table import CostTable
from headrace.workers.scheduler.cost_grid import CostGrid
from headrace.workers.scheduler.deadlines import rescue
from headrace.workers.scheduler.partition import Item, Limits, cut_packed, cut_padded, in_length_order
from headrace.workers.scheduler.plan import Batch, Plan, packed_batches, padded_batches

#: Measured costs err by as much: of two ways that differ by less, the one that is taken would change by the minute.
_TABLE_ERROR = 1.1


class Strategy:
    """Cuts windows for one kind of worker.

    Args:
        batching: which baseline, or the dynamic program.
        objective: what the dynamic program minimises.
        overtaking_tokens: an objective other than total cost may let a batch overtake another whose most urgent
            request is more urgent by less than this, in tokens of virtual time. As that goes on, nobody is overtaken
            for ever.
    """

    def __init__(self, batching: Batching, objective: Objective, overtaking_tokens: float = math.inf) -> None:
        self._batching = batching
        self._objective = objective
        self._overtaking_tokens = overtaking_tokens
        self._grid: CostGrid | None = None

    def plan(self, items: Sequence[Item], table: CostTable, limits: Limits) -> Plan:
        """Cut a window.

        Args:
            items: waiting requests, the most urgent first.
            table: of the workers that will run them.
            limits: of a batch.
        """
        grid = self._grid_of(table, limits.max_rows)
        if self._batching in ("none", "naive", "sorted"):
            return self._fill(items, grid, limits)
        if self._batching == "packed":
            return self._pack(items, grid, limits)
        padded = self._pad(items, grid, limits)
        if self._batching == "dp" or not table.packs or not items:
            return padded
        packed = self._pack(items, grid, limits)
        if self._value(padded, items, _TABLE_ERROR) < self._value(packed, items):
            return replace(padded, alternative_ms=packed.total_ms)
        return replace(packed, alternative_ms=padded.total_ms)

    def _grid_of(self, table: CostTable, max_rows: int) -> CostGrid:
        if self._grid is None or self._grid.table is not table or max_rows > self._grid.max_rows:
            self._grid = CostGrid(table, max_rows)
        return self._grid

    def _fill(self, items: Sequence[Item], grid: CostGrid, limits: Limits) -> Plan:
        limits = replace(limits, max_rows=1) if self._batching == "none" else limits
        order: Iterable[int] = in_length_order(items) if self._batching == "sorted" else range(len(items))
        batches = padded_batches(_filled(order, items, limits), items, grid)
        return Plan(tuple(sorted(batches, key=lambda batch: batch.members[0])))

    def _pad(self, items: Sequence[Item], grid: CostGrid, limits: Limits) -> Plan:
        mean = self._objective == "mean"
        plan = self._arrange(padded_batches(cut_padded(items, grid, limits, mean=mean), items, grid), items)
        if self._objective != "misses" or not plan.num_missed(items):
            return plan
        most_urgent = min(item.score for item in items)
        front = [i for i, item in enumerate(items) if item.score - most_urgent < self._overtaking_tokens]
        kept, lost = rescue([items[i] for i in front], grid, limits)
        in_time, given_up = [[front[i] for i in members] for members in kept], [front[i] for i in lost]
        served = {index for members in in_time for index in members}
        rest = [index for index in range(len(items)) if index not in served]
        later = [[rest[i] for i in members] for members in cut_padded([items[i] for i in rest], grid, limits)]
        last = self._arrange(padded_batches(later, items, grid), items, given_up)
        rescued = Plan((*padded_batches(in_time, items, grid), *last.batches))
        return min(plan, rescued, key=lambda plan: self._value(plan, items))

    def _pack(self, items: Sequence[Item], grid: CostGrid, limits: Limits) -> Plan:
        cut = cut_packed(items, grid, limits, mean=self._objective == "mean")
        return replace(self._arrange(packed_batches(cut, items, grid), items), packed=True)

    def _arrange(self, batches: Sequence[Batch], items: Sequence[Item], hopeless: Sequence[int] = ()) -> Plan:
        """Put batches in order: by their most urgent members, or by the objective among equally urgent ones."""
        if self._objective == "total" or not batches:
            return Plan(tuple(sorted(batches, key=lambda batch: batch.members[0])))
        given_up = set(hopeless)
        most_urgent = min(item.score for item in items)

        def key(batch: Batch) -> tuple[float, float, int]:
            behind = min(items[index].score for index in batch.members) - most_urgent
            urgency = behind // self._overtaking_tokens if behind else 0.0
            if self._objective == "mean":
                # Smith's rule: of batches that run one after the other, those first that cost little a request.
                value = batch.cost_ms / len(batch.members)
            else:
                value = min((items[i].slack_ms for i in batch.members if i not in given_up), default=math.inf)
            return urgency, value, batch.members[0]

        return Plan(tuple(sorted(batches, key=key)))

    def _value(self, plan: Plan, items: Sequence[Item], doubt: float = 1.0) -> tuple[float, float]:
        """What to minimise, costs taken for so many times what they are."""
        total_ms = doubt * plan.total_ms
        if self._objective == "mean":
            return doubt * plan.mean_completion_ms, total_ms
        if self._objective == "misses":
            return plan.num_missed(items), total_ms
        return total_ms, 0.0


def _filled(order: Iterable[int], items: Sequence[Item], limits: Limits) -> list[list[int]]:
    """Batches as full as the limits allow, in this order; their members increase."""
    batches: list[list[int]] = []
    length = kv_tokens = 0
    for index in order:
        item = items[index]
        length, kv_tokens = max(length, item.length), kv_tokens + item.kv_tokens
        num_rows = len(batches[-1]) + 1 if batches else 0
        fits = num_rows <= limits.max_rows and length * num_rows <= limits.max_tokens
        if batches and fits and kv_tokens <= limits.max_kv_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            length, kv_tokens = item.length, item.kv_tokens
    return [sorted(members) for members in batches]
