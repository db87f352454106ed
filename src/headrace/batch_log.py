"""The log of batches: as the scheduler cut them, and what they then cost. An entry each, joined by whoever reads."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from headrace.checks import measure, text, whole
from headrace.errors import DecodeError

_ENTRY = re.compile(r"[0-9]{1,16}-[0-9]{1,20}")


@dataclass(frozen=True, slots=True)
class BatchRun:
    """A batch whose prompts a worker has computed.

    Attributes:
        batch: its entry in ``batches``.
        worker_class: of the worker that ran it.
        worker: its name.
        num_rows: whose prompts were computed.
        num_tokens: computed, fewer than the batch's own where rows shared what was known.
        cost_ms: of every step, the part that the batch's prompts were of its tokens.
    """

    batch: str
    worker_class: str
    worker: str
    num_rows: int
    num_tokens: int
    cost_ms: float

    def fields(self) -> dict[str, str | int]:
        """Of the log's entry."""
        return {"kind": "ran", "batch": self.batch, "class": self.worker_class, "worker": self.worker,
                "rows": self.num_rows, "tokens": self.num_tokens, "ms": f"{self.cost_ms:.3f}"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """What the log knows of one batch.

    Attributes:
        batch: its entry in ``batches``, which begins with the time (ms) of its cut.
        worker_class: by whose costs it was cut; "" for nobody's in particular.
        num_rows: in it.
        num_tokens: to prefill, without padding.
        longest: tokens of its longest prompt.
        predicted_ms: by the table it was cut with, an encoder's cut, claim and answers included.
        run: what it really cost; None where no worker has said so (yet).
    """

    batch: str
    worker_class: str
    num_rows: int
    num_tokens: int
    longest: int
    predicted_ms: float
    run: BatchRun | None = None


def read_batch_log(entries: Sequence[Mapping[bytes, bytes]]) -> list[BatchRecord]:
    """Join the log's entries, newest first, into a record a batch, in the order of the cuts.

    A run whose cut is not among the entries is left out, as is what another version wrote, or what is no entry at all.
    """
    runs: dict[str, BatchRun] = {}
    records: list[BatchRecord] = []
    for fields in entries:
        try:
            f = {name.decode(): value.decode() for name, value in fields.items()}
            if f["kind"] == "ran":
                run = BatchRun(_batch(f), _name(f, "class"), _name(f, "worker"), _count(f, "rows"), _count(f, "tokens"),
                               _cost_ms(f))  # fmt: skip
                runs.setdefault(run.batch, run)
            elif f["kind"] == "cut":
                sizes = _count(f, "rows"), _count(f, "tokens"), _count(f, "longest")
                records.append(BatchRecord(_batch(f), _name(f, "class"), *sizes, _cost_ms(f)))
        except (KeyError, ValueError, DecodeError):
            continue
    return [replace(record, run=runs.get(record.batch)) for record in records]


def _batch(fields: Mapping[str, str]) -> str:
    """An entry's id: the time of the cut, which every reader wants, and a number."""
    if not _ENTRY.fullmatch(fields["batch"]):
        raise DecodeError("batch is no entry of a stream")
    return fields["batch"]


def _name(fields: Mapping[str, str], name: str) -> str:
    return text(fields[name], name)


def _count(fields: Mapping[str, str], name: str) -> int:
    return whole(int(fields[name]), name)


def _cost_ms(fields: Mapping[str, str]) -> float:
    return measure(float(fields["ms"]), "ms")
