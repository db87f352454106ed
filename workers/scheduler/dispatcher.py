"""Ready requests become batches for as long as the workers' backlog is short."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from headrace.broker import Broker
from headrace.config import Settings
from headrace.faults import fault_point
from headrace.heartbeat import WorkerInfo
from headrace.moves import BatchNote, DispatchCall, ReadyRequest, Window
from headrace.workers.scheduler.partition import Item
from headrace.workers.scheduler.plan import DOUBT, Plan
from headrace.workers.scheduler.strategy import Strategy
from headrace.workers.scheduler.trigger import Patience, Waiting
from headrace.workers.scheduler.worker_class import ClassBook, WorkerClass

log = logging.getLogger(__name__)


#: Requests that share a prefill, and its predicted cost in ms.
Portion = tuple[tuple[ReadyRequest, ...], float]


@dataclass(frozen=True, slots=True)
class Cut:
    """A window as it is to be dispatched to one class of workers.

    Attributes:
        batches: the first one first.
        plan: what the strategy made of those without a strike.
        hopeless: requests that will not meet their deadlines; they are in no batch.
        spare_ms: for how long all of this may wait until the first deadline is in danger; negative where one is.
        step_ms: what a token behind the first one takes.
    """

    batches: tuple[Portion, ...]
    plan: Plan
    hopeless: tuple[ReadyRequest, ...]
    spare_ms: float
    step_ms: float

    def num_in_danger(self, requests: Iterable[ReadyRequest], now_ms: int) -> int:
        """How many of these are in no batch, or in one that may end too late, one batch after the other."""
        ends = accumulate(DOUBT * cost_ms for _, cost_ms in self.batches)
        ends_ms = {r.request_id: end for (batch, _), end in zip(self.batches, ends, strict=True) for r in batch}
        return sum(
            ends_ms.get(request.request_id, math.inf) > _slack_ms(request, now_ms, self.step_ms)
            for request in requests
            if request.deadline_ms
        )


class Dispatcher:
    """Cuts the front of the ready requests into batches and hands them over.

    Args:
        broker: of the queue.
        settings: of batches and backlogs.
        for_encoders: a worker computes a batch as it was cut, whatever comes meanwhile; others let rows join.
    """

    def __init__(self, broker: Broker, settings: Settings, *, for_encoders: bool = False) -> None:
        self._broker = broker
        self._settings = settings
        self._for_encoders = for_encoders
        self._book = ClassBook(settings)
        self._patience = Patience.of(settings)
        self._strategies: dict[str, Strategy] = {}
        self._packs: dict[str, bool] = {}
        self._waited: tuple[ReadyRequest, ...] = ()
        self.wait_ms = math.inf

    def fit(self, workers: Sequence[WorkerInfo], tables: Mapping[str, bytes]) -> None:
        """Adjust to the workers that live, and to what their classes have published of their costs."""
        self._book.look(workers, tables)

    @property
    def has_workers(self) -> bool:
        """Whether any lived at the last look. Until one does, batches are cut for no class and by guessed costs."""
        return any(found.num_workers for found in self._book.classes)

    def dispatch(self) -> int:
        """Dispatch batches until none is ready or the backlogs are long enough; return how many requests went.

        Every class of workers has a backlog of its own, and whichever is hungriest is fed first: the requests at hand
        are cut for it until its backlog is full, and what is left for the next one. Where the trigger lets requests
        gather, nothing goes, and ``wait_ms`` says when to ask again.
        """
        self.wait_ms = math.inf
        waiting, longest = self._broker.waiting_batches(), self._settings.max_backlog_batches
        fault_point("batches.counted")
        hungry = [found for found in self._book.classes if waiting[found.name] < longest]
        if not hungry:
            return 0
        # An encoder's batches are not cut to what those that wait leave.
        window = self._broker.window(self._settings.window, counts_waiting=not self._for_encoders)
        fault_point("window.read")
        num_sent = 0
        for worker_class in sorted(hungry, key=lambda found: found.hunger(waiting[found.name])):
            if not window.requests:
                break
            cut = self.cut(window, worker_class)
            fault_point("window.cut")
            if not num_sent and (wait_ms := self._wait_ms(window, cut, hungry, waiting)) > 0:
                self.wait_ms, self._waited = wait_ms, window.requests
                break
            cut = self._as_promised(window, cut, worker_class)
            gone = self._feed(worker_class, cut, waiting[worker_class.name])
            fault_point("dispatch.done")
            num_sent += len(gone) - len(cut.hopeless)
            left = tuple(request for request in window.requests if request.request_id not in gone)
            window = replace(window, requests=left)
            self._waited = tuple(request for request in self._waited if request.request_id not in gone)
        return num_sent

    def _wait_ms(self, window: Window, cut: Cut, classes: Sequence[WorkerClass], backlogs: Mapping[str, int]) -> float:
        """How long to let requests gather. Those that come back from a lost worker have waited enough.

        Who will be the hungriest when the wait ends is not known: no class may then be too slow for a deadline, and
        where batches wait for a worker, what is left of one is not known either.
        """
        if self._patience.trigger == "hungry":
            return 0.0
        if cut.hopeless or not cut.plan.batches or any(request.strikes for request in window.requests):
            return 0.0
        spare_ms = cut.spare_ms
        if any(request.deadline_ms for request in window.requests):
            if any(backlogs[found.name] for found in classes):
                return 0.0
            if len(classes) > 1:
                spare_ms = min(self.cut(window, found).spare_ms for found in classes)
        latest_start_ms = window.now_ms + spare_ms if spare_ms < math.inf else None
        oldest_ms = min(request.submit_ms for request in window.requests)
        waiting = Waiting(window.num_ready, oldest_ms, cut.plan.batches[0].cost_ms, latest_start_ms)
        return self._patience.wait_ms(waiting, window.now_ms)

    def _as_promised(self, window: Window, cut: Cut, worker_class: WorkerClass) -> Cut:
        """The cut, or one of those alone who were let wait, where newer company would put their deadlines in danger.

        They would have been served when they came, had they not been made to wait: who came meanwhile goes behind.
        """
        here = {request.request_id for request in window.requests}
        if window.num_ready <= len(window.requests):  # else who is not here may have been pushed out
            self._waited = tuple(request for request in self._waited if request.request_id in here)
        if not (num_in_danger := cut.num_in_danger(self._waited, window.now_ms)):
            return cut
        alone = self.cut(replace(window, requests=self._waited), worker_class)
        if alone.num_in_danger(self._waited, window.now_ms) >= num_in_danger:
            return cut
        self.wait_ms = 0.0
        return alone

    def _feed(self, worker_class: WorkerClass, cut: Cut, num_waiting: int) -> set[str]:
        """Dispatch batches to one class for which so many wait; return the ids that have left.

        Suspects go to whoever comes first, and count for nobody's backlog but their own.
        """
        hopeless = [request.request_id for request in cut.hopeless]
        batches = list(self._leaving(worker_class, cut.batches, num_waiting)) or [((), 0.0)] * bool(hopeless)
        calls: list[DispatchCall] = []
        for requests, cost_ms in batches:
            lengths = [request.length for request in requests]
            name = "" if any(request.strikes for request in requests) else worker_class.name
            note = BatchNote(name, sum(lengths), max(lengths, default=0), cost_ms)
            ids = [request.request_id for request in requests]
            calls.append(DispatchCall(ids, self._settings, note, hopeless if not calls else ()))
        gone = set(hopeless)
        for call, outcome in zip(calls, self._broker.run_all(calls), strict=True):
            gone |= set(call.request_ids) - set(outcome.left)
        return gone

    def _leaving(self, worker_class: WorkerClass, batches: Sequence[Portion], num_waiting: int) -> Iterator[Portion]:
        """The batches up to the last one that there is room for; suspects take none of it.

        Where rows cannot join a batch later, the last one stays while it has room for more of them and as many others
        wait as there are workers: who comes until one is claimed shares what a batch costs, and nobody has to wait.
        Where they can, a batch that takes more than a quarter of a worker stays behind as many that leave now: all
        are cut to the room there was before, and once these are claimed it is cut to the room that they left. While
        no worker lives nobody knows what one will hold, and any holds one request: they leave one by one.
        """
        if not worker_class.num_workers:
            alone = [request for requests, _ in batches for request in requests]
            batches = [((request,), worker_class.table.cost(request.length, 1)) for request in alone]
        num_sent = 0
        last = next((requests for requests, _ in reversed(batches) if not requests[0].strikes), ())
        stays = self._for_encoders and len(last) < worker_class.limits.max_rows
        for requests, cost_ms in batches:
            if num_waiting >= self._settings.max_backlog_batches:
                return
            if stays and requests is last and num_waiting >= max(1, worker_class.num_workers):
                continue
            if num_sent >= worker_class.num_workers and self._is_large(requests, worker_class):
                return
            yield requests, cost_ms
            num_sent += not requests[0].strikes
            num_waiting += not requests[0].strikes

    def _is_large(self, requests: Sequence[ReadyRequest], worker_class: WorkerClass) -> bool:
        """Whether a batch could be cut smaller, and takes more than a quarter of a worker whose rows come and go."""
        if self._for_encoders or len(requests) == 1:
            return False
        quarter_rows, quarter_tokens = worker_class.quarter()
        return len(requests) > quarter_rows or sum(request.cost_tokens for request in requests) > quarter_tokens

    def cut(self, window: Window, worker_class: WorkerClass | None = None) -> Cut:
        """Partition a window for a class of workers, by default the first there is.

        A request with a strike travels alone, so that if it kills its worker again nobody else is suspected. One such
        suspect travels first, because then the first token that a worker streams after a loss is a suspect's, which
        clears it: were all suspects behind the rows that resume, workers that are killed from outside as soon as they
        stream would take the same innocent down every time. The other suspects come behind, so that a loss of many
        rows does not silence those that resume until each suspect has had its turn; since every round cuts anew,
        suspects and others alternate.
        """
        worker_class = worker_class or self._book.classes[0]
        table = worker_class.table
        sound: list[ReadyRequest] = []
        items: list[Item] = []
        suspects: list[Portion] = []
        hopeless: list[ReadyRequest] = []
        slacks_ms: list[float] = []
        step_ms = table.cost(1, 1)
        is_too_slow = False
        for request in window.requests:
            slack_ms = request.deadline_ms - window.now_ms if request.deadline_ms else math.inf
            counts = self._settings.drop_hopeless and slack_ms < math.inf
            if slack_ms <= (self._book.least_ms(request.length) if counts else 0.0):
                hopeless.append(request)
            elif counts and slack_ms <= table.cost(request.length, 1):
                is_too_slow = True  # and a faster class may not be
            elif request.strikes:
                suspects.append(((request,), table.cost(request.length, 1)))
            else:
                sound.append(request)
                items.append(Item(request.length, request.cost_tokens, slack_ms, request.score))
                slacks_ms.append(_slack_ms(request, window.now_ms, step_ms))
        num_taken, taken_tokens = 0, window.running_tokens
        if not self._for_encoders:  # what waits comes first, and the suspect that leaves before others
            num_taken = window.num_running + window.num_waiting + len(suspects[:1])
            taken_tokens += window.waiting_tokens + sum(suspect.cost_tokens for (suspect,), _ in suspects[:1])
        limits = self._book.limits(worker_class, num_taken, taken_tokens)
        plan = self._strategy(worker_class.name).plan(items, table, limits)
        self._report(worker_class.name, plan)
        batches = [(tuple(sound[index] for index in batch.members), batch.cost_ms) for batch in plan.batches]
        spare_ms = -math.inf if is_too_slow else plan.spare_ms(slacks_ms)
        return Cut((*suspects[:1], *batches, *suspects[1:]), plan, tuple(hopeless), spare_ms, step_ms)

    def _strategy(self, class_name: str) -> Strategy:
        """A class's own, because a strategy remembers the table that it was asked for last."""
        s = self._settings
        return self._strategies.setdefault(class_name, Strategy(s.batching, s.objective, s.overtaking_tokens))

    def _report(self, class_name: str, plan: Plan) -> None:
        """Say which way is cheaper, when that changes."""
        if plan.alternative_ms is not None and self._packs.get(class_name) != plan.packed:
            self._packs[class_name] = plan.packed
            names = ("packing", "padding") if plan.packed else ("padding", "packing")
            costs = (plan.total_ms, plan.alternative_ms)
            of_class = class_name or "any class"
            log.info("%s: %s costs %.1f ms a window, %s %.1f ms", of_class, names[0], costs[0], names[1], costs[1])


def _slack_ms(request: ReadyRequest, now_ms: int, step_ms: float) -> float:
    """How long from now its first token may take, so that all that it asks for comes in time."""
    if not request.deadline_ms:
        return math.inf
    return request.deadline_ms - now_ms - max(0, request.cost_tokens - request.length - 1) * step_ms
