"""``dispatch``: ready requests become one batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.config import Settings
from headrace.moves.call import Argument
from headrace.moves.reap import RECHECK_MS
from headrace.moves.reply import read_texts


@dataclass(frozen=True, slots=True)
class Dispatched:
    """What became of a batch.

    Attributes:
        entry: its id in ``batches``; "" if no request of it was ready any more.
        full: the workers' backlog is long enough; nothing changed.
        left: ids that are not in the batch.
    """

    entry: str
    full: bool
    left: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BatchNote:
    """What the scheduler writes on a batch.

    Attributes:
        worker_class: whose costs it was cut by, and who is to run it; "" for any.
        num_tokens: to prefill, without padding.
        longest: tokens of the longest prompt.
        predicted_ms: what the batch costs by that class's table.
    """

    worker_class: str = ""
    num_tokens: int = 0
    longest: int = 0
    predicted_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class DispatchCall:
    """Ready requests become one batch.

    Attributes:
        request_ids: of the batch.
        settings: backlog limits.
        note: what is written on it.
        hopeless: ready requests that cannot meet their deadlines any more: they end, without room for a batch, too.
    """

    request_ids: Sequence[str]
    settings: Settings
    note: BatchNote = BatchNote()
    hopeless: Sequence[str] = ()
    move: Literal["dispatch"] = "dispatch"

    def arguments(self) -> list[Argument]:
        """See ``lua/dispatch.lua``.

        A batch that only the workers of one class can hold comes back soon after the last of them has died.
        """
        s, note = self.settings, self.note
        recheck_ms = min(RECHECK_MS, 2 * s.lease_ms) if note.worker_class else RECHECK_MS
        predicted_ms = f"{note.predicted_ms:.3f}"
        return [s.max_backlog_batches, recheck_ms, note.worker_class, s.batch_log_entries,
                note.num_tokens, note.longest, predicted_ms, len(self.hopeless), *self.hopeless,
                *self.request_ids]  # fmt: skip

    def read(self, reply: object) -> Dispatched:
        """Of ``{entry, id, …}``."""
        entry, *left = read_texts(reply)
        if entry == "full":
            return Dispatched("", True, tuple(self.request_ids))
        return Dispatched(entry, False, tuple(left))
