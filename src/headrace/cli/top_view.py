"""A frame of ``headrace top``: an overview as text, for a terminal of any size. No I/O."""

import math
from collections.abc import Sequence

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from headrace.batch_log import BatchRecord
from headrace.cli.units import cost, count, duration
from headrace.overview import Overview

#: Below so many columns, what can be done without is left out.
NARROW_COLUMNS = 76
#: Lines that are always there: heads, lanes, and the blank lines between the parts.
_NUM_FIXED_LINES = 14
_MIN_BATCHES = 2
#: The head of the one column of names that stands behind numbers.
_CLASS = "class"
_MIN_NAME_COLUMNS = 4
#: Between two columns.
_GAP = 2


def frame(found: Overview | None, trouble: str, *, url: str, width: int, height: int | None) -> RenderableType:
    """Draw one frame.

    Args:
        found: the newest look; None where there was none yet.
        trouble: why there is no newer one; "" where all is well.
        url: the server's, without a password.
        width: of the terminal, in columns.
        height: in lines; None: as many as it takes.
    """
    parts: list[RenderableType] = [_line(f"{url}  queue {found.queue}" if found else url, "bold")]
    if trouble:
        parts += [Text(f"trying again: {trouble}", "bold red")]
    if found is None:
        return Group(*parts)
    trouble_lines = math.ceil(len(trouble) / width) + 1 if trouble else 0
    num_workers, num_batches = _room(found, None if height is None else height - trouble_lines)
    parts += [*_totals(found), Text(), _lanes(found, width), Text(), _batches(found, num_batches, width), Text()]
    parts += [_schedulers(found), *_workers(found, num_workers, width)]
    return Group(*parts)


def _room(found: Overview, height: int | None) -> tuple[int, int]:
    """How many workers and batches fit."""
    if height is None:
        return len(found.workers), len(found.batches)
    free = max(height - _NUM_FIXED_LINES, _MIN_BATCHES + 1)
    num_workers = min(len(found.workers), max(free // 2, free - len(found.batches)))
    return num_workers, max(_MIN_BATCHES, free - num_workers)


def _line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _totals(found: Overview) -> list[Text]:
    load = found.load
    waiting = f"{count(load['queued'])} queued ({count(load['queued_tokens'])} tokens)"
    running = f"{count(load['running'])} running ({count(load['running_tokens'])} tokens)"
    return [
        _line(f"{found.tokens_per_s:.1f} tokens/s  {waiting}  {running}"),
        _line(f"{count(load['batches'])} batches waiting  {count(load['dead'])} dead", "red" if load["dead"] else ""),
    ]


def _table(rows: Sequence[Sequence[str]], width: int) -> Table:
    """A table from its heads and rows, of names and, behind them, numbers. A narrow terminal cuts the names."""
    widths = [max(len(cell) for cell in cells) for cells in zip(*rows, strict=True)]
    spare = width - _GAP * (len(widths) - 1) - sum(widths)
    # The last column first, then the first one: numbers are shown whole.
    for column in (-1, 0) if rows[0][-1] == _CLASS else (0,):
        given = min(max(0, -spare), widths[column] - min(widths[column], _MIN_NAME_COLUMNS))
        widths[column] -= given
        spare += given
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for number, (head, columns) in enumerate(zip(rows[0], widths, strict=True)):
        justify: JustifyMethod = "left" if number == 0 or head == _CLASS else "right"
        table.add_column(head, justify=justify, no_wrap=True, overflow="ellipsis", width=columns)
    for row in rows[1:]:
        table.add_row(*(Text(cell) for cell in row))  # names may look like markup
    return table


def _lanes(found: Overview, width: int) -> Table:
    about = "~" if found.is_sampled else ""
    rows = [["lane", "new", "ready", "oldest wait"]]
    rows += [
        [lane.lane, count(lane.num_new), about + count(lane.num_ready), duration(lane.oldest_wait_ms)]
        for lane in found.lanes
    ]
    return _table(rows, width)


def _batches(found: Overview, num: int, width: int) -> RenderableType:
    if not found.batches:
        return _line("no batch yet", "dim")
    rows = [["batch", "rows", "predicted", "real", "off by", "longest", "computed", _CLASS]]
    for batch in found.batches[:num]:
        age = duration(max(0, found.now_ms - int(batch.batch.partition("-")[0])))
        costs = [cost(batch.predicted_ms), *_real(batch)]
        # Where rows begin alike, or like others before them, fewer tokens are computed than there are.
        computed = f"{count(batch.run.num_tokens) if batch.run else '-'}/{count(batch.num_tokens)}"
        sizes = [count(batch.longest), computed, batch.worker_class or "any"]
        rows.append([f"{age} ago", str(batch.num_rows), *costs, *sizes])
    return _table([row[:5] for row in rows] if width < NARROW_COLUMNS else rows, width)


def _real(batch: BatchRecord) -> Sequence[str]:
    """What it took, and how far that is from what was predicted."""
    if batch.run is None:
        return "-", "-"
    off_by = f"{batch.run.cost_ms / batch.predicted_ms - 1:+.0%}" if batch.predicted_ms > 0 else "-"
    return cost(batch.run.cost_ms), off_by


def _schedulers(found: Overview) -> Text:
    if not found.schedulers:
        return _line("no scheduler", "bold red")
    others = sorted(beat.name for beat in found.schedulers if beat.name != found.leader)
    stand_by = f"; standing by: {', '.join(others)}" if others and found.leader else ""
    return _line(f"scheduler {found.leadership}{stand_by}")


def _workers(found: Overview, num: int, width: int) -> list[RenderableType]:
    if not found.workers:
        return [_line("no worker", "bold red")]
    rows = [["worker", "rows", "tokens/s", "seen", _CLASS]]
    busiest = sorted(found.workers, key=lambda worker: (-worker.num_rows, worker.worker))
    for worker in busiest[:num]:
        rate = f"{worker.tokens_per_s:.1f}"
        seen = f"{duration(max(0, found.now_ms - worker.seen_ms))} ago"
        rows.append([worker.worker, f"{worker.num_rows}/{worker.max_rows}", rate, seen, worker.worker_class])
    table = _table([row[:3] for row in rows] if width < NARROW_COLUMNS else rows, width)
    hidden = len(found.workers) - num
    return [table, _line(f"and {hidden} more", "dim")] if hidden > 0 else [table]
