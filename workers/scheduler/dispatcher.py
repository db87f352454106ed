"""Ready requests become batches for as long as the workers' backlog is short."""

from collections.abc import Mapping, Sequence

from headrace.broker import Broker, ReadyRequest, WorkerInfo
from headrace.config import Settings
from headrace.moves import BatchNote, DispatchCall
from headrace.workers.scheduler.partition import Item, partition
from headrace.workers.scheduler.worker_class import ClassBook, WorkerClass


class Dispatcher:
    """Cuts the front of the ready requests into batches and hands them over."""

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self._broker = broker
        self._settings = settings
        self._book = ClassBook(settings)

    def fit(self, workers: Sequence[WorkerInfo], tables: Mapping[str, bytes]) -> None:
        """Adjust to the workers that live, and to what their classes have published of their costs."""
        self._book.look(workers, tables)

    def dispatch(self) -> int:
        """Dispatch batches until none is ready or the backlogs are long enough; return how many requests went.

        Every class of workers has a backlog of its own, and whichever is hungriest is fed first: the requests at hand
        are cut for it until its backlog is full, and what is left for the next one.
        """
        waiting, longest = self._broker.waiting_batches(), self._settings.max_backlog_batches
        hungry = [found for found in self._book.classes if waiting[found.name] < longest]
        if not hungry:
            return 0
        ready = self._broker.ready_requests(self._settings.window)
        num_sent = 0
        for worker_class in sorted(hungry, key=lambda found: found.hunger(waiting[found.name])):
            sent = self._feed(worker_class, ready)
            num_sent += len(sent)
            ready = [request for request in ready if request.request_id not in sent]
        return num_sent

    def _feed(self, worker_class: WorkerClass, ready: Sequence[ReadyRequest]) -> set[str]:
        """Dispatch batches to one class; return the ids that went. Suspects go to whoever comes first."""
        sent: set[str] = set()
        for batch in self.cut(ready, worker_class):
            ids = [request.request_id for request in batch]
            name = "" if batch[0].strikes else worker_class.name
            outcome = self._broker.run(DispatchCall(ids, self._settings, _note(batch, name, worker_class)))
            if not outcome.full:
                sent |= set(ids) - set(outcome.left)
            elif name == worker_class.name:
                break
        return sent

    def cut(self, ready: Sequence[ReadyRequest], worker_class: WorkerClass | None = None) -> list[list[ReadyRequest]]:
        """Partition ready requests; batches come in the order of their most urgent member, one suspect before them.

        They are cut for a class of workers, by default the first there is.

        A request with a strike travels alone, so that if it kills its worker again nobody else is suspected. One such
        suspect travels first, because then the first token that a worker streams after a loss is a suspect's, which
        clears it: were all suspects behind the rows that resume, workers that are killed from outside as soon as they
        stream would take the same innocent down every time. The other suspects come behind, so that a loss of many
        rows does not silence those that resume until each suspect has had its turn; since every round cuts anew,
        suspects and others alternate.
        """
        worker_class = worker_class or self._book.classes[0]
        position = {request.request_id: index for index, request in enumerate(ready)}
        sound = [request for request in ready if request.strikes == 0]
        items = [Item(_length(request), request.cost_tokens) for request in sound]
        split = partition(items, worker_class.table, worker_class.limits)
        batches = [[sound[index] for index in batch] for batch in split]
        batches.sort(key=lambda batch: position[batch[0].request_id])
        suspects = [[request] for request in ready if request.strikes > 0]
        return suspects[:1] + batches + suspects[1:]


def _length(request: ReadyRequest) -> int:
    return request.prompt_tokens + request.num_tokens


def _note(batch: Sequence[ReadyRequest], name: str, worker_class: WorkerClass) -> BatchNote:
    lengths = [_length(request) for request in batch]
    longest = max(lengths)
    return BatchNote(name, sum(lengths), longest, worker_class.table.cost(longest, len(lengths)))
