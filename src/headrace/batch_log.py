"""The log of batches: as the scheduler cut them, and what they then cost. An entry each, joined by whoever reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


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
        predicted_ms: by the table it was cut with.
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
        f = {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
        try:
            if f["kind"] == "ran":
                run = BatchRun(f["batch"], f["class"], f["worker"], int(f["rows"]), int(f["tokens"]), float(f["ms"]))
                runs.setdefault(run.batch, run)
            elif f["kind"] == "cut":
                int(f["batch"].partition("-")[0])  # the time of the cut, which every reader wants
                sizes = int(f["rows"]), int(f["tokens"]), int(f["longest"])
                records.append(BatchRecord(f["batch"], f["class"], *sizes, float(f["ms"])))
        except (KeyError, ValueError):
            continue
    return [replace(record, run=runs.get(record.batch)) for record in records]
