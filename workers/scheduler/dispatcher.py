"""Ready requests become batches for as long as the workers' backlog is short."""

import logging
from collections.abc import Sequence

from headrace.broker import Broker, ReadyRequest, WorkerInfo
from headrace.config import Settings
from headrace.errors import DecodeError
from headrace.moves import DispatchCall
from headrace.workers.costs.table import CostTable
from headrace.workers.scheduler.partition import Item, Limits, partition

log = logging.getLogger(__name__)

#: What a batch costs on a machine that has not published a table: small CPUs, which is where nobody measures.
_FIXED_MS = 30.0
_TOKEN_MS = 2.0


class Dispatcher:
    """Cuts the front of the ready requests into batches and hands them over."""

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self._broker = broker
        self._settings = settings
        self._limits = Limits(settings.max_batch_rows, settings.max_batch_tokens)
        self._table = CostTable.linear(_FIXED_MS, _TOKEN_MS, settings.max_context_tokens, settings.max_batch_rows)

    def fit(self, workers: Sequence[WorkerInfo], table: bytes | None) -> None:
        """Adjust to the workers that live: a batch must fit into each of them; take their cost table, if any."""
        if table is not None:
            try:
                self._table = CostTable.decode(table)
            except DecodeError as error:
                log.warning("keeping the cost table there was: %s", error)
        self._limits = Limits(
            min([self._settings.max_batch_rows, *(worker.max_rows for worker in workers)]),
            min([self._settings.max_batch_tokens, *(worker.kv_tokens for worker in workers)]),
        )

    def dispatch(self) -> int:
        """Dispatch batches until none is ready or the backlog is long enough; return how many requests went."""
        if self._broker.num_waiting_batches() >= self._settings.max_backlog_batches:
            return 0
        ready = self._broker.ready_requests(self._settings.window)
        num_sent = 0
        for batch in self.cut(ready):
            outcome = self._broker.run(DispatchCall([request.request_id for request in batch], self._settings))
            if outcome.full:
                break
            num_sent += len(batch) - len(outcome.left)
        return num_sent

    def cut(self, ready: Sequence[ReadyRequest]) -> list[list[ReadyRequest]]:
        """Partition ready requests; batches come in the order of their most urgent member, one suspect before them.

        A request with a strike travels alone, so that if it kills its worker again nobody else is suspected. One such
        suspect travels first, because then the first token that a worker streams after a loss is a suspect's, which
        clears it: were all suspects behind the rows that resume, workers that are killed from outside as soon as they
        stream would take the same innocent down every time. The other suspects come behind, so that a loss of many
        rows does not silence those that resume until each suspect has had its turn; since every round cuts anew,
        suspects and others alternate.
        """
        position = {request.request_id: index for index, request in enumerate(ready)}
        sound = [request for request in ready if request.strikes == 0]
        items = [Item(request.prompt_tokens + request.num_tokens, request.cost_tokens) for request in sound]
        batches = [[sound[index] for index in batch] for batch in partition(items, self._table, self._limits)]
        batches.sort(key=lambda batch: position[batch[0].request_id])
        suspects = [[request] for request in ready if request.strikes > 0]
        return suspects[:1] + batches + suspects[1:]
