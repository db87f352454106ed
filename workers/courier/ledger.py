"""What batches really cost: the steps that their prompts shared, until every row has its first token. No I/O."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from headrace.batch_log import BatchRun
from headrace.workers.channel import Encoded, Tokens


@dataclass(slots=True)
class _Account:
    """One batch: rows without a first token, and what the prompts have cost so far."""

    batch: str
    open_rows: set[int]
    num_tokens: int = 0
    cost_ms: float = 0.0
    computed_rows: set[int] = field(default_factory=set)


class Ledger:
    """The batches whose prompts one engine computes now.

    Args:
        worker: its name.
        worker_class: what it costs like.
    """

    def __init__(self, worker: str, worker_class: str) -> None:
        self._worker = worker
        self._worker_class = worker_class
        self._by_row: dict[int, _Account] = {}

    def begin(self, batch: str, rows: Iterable[int]) -> None:
        """Open an account for a batch whose rows the engine has been given."""
        account = _Account(batch, set(rows))
        self._by_row |= dict.fromkeys(account.open_rows, account)

    def step(self, message: Tokens | Encoded) -> list[BatchRun]:
        """Charge a step to the batches whose prompts it computed; return those that are complete with it."""
        for row, num_tokens in message.prompts:
            if account := self._by_row.get(row):
                account.num_tokens += num_tokens
                account.cost_ms += message.step_ms * num_tokens / max(1, message.num_tokens)
                account.computed_rows.add(row)
        return self._close(message.ended)

    def sweep(self, is_computing: Callable[[int], bool]) -> list[BatchRun]:
        """Close the accounts of rows that have ended without a token: dropped, expired, handed back."""
        return self._close([row for row in self._by_row if not is_computing(row)])

    def _close(self, rows: Iterable[int]) -> list[BatchRun]:
        complete: list[BatchRun] = []
        for row in rows:
            account = self._by_row.pop(row, None)
            if account is None:
                continue
            account.open_rows.discard(row)
            if not account.open_rows and account.computed_rows:
                complete.append(self._run(account))
        return complete

    def _run(self, account: _Account) -> BatchRun:
        sizes = len(account.computed_rows), account.num_tokens
        return BatchRun(account.batch, self._worker_class, self._worker, *sizes, account.cost_ms)
