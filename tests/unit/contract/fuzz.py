"""Random steps of a fleet, for real servers: Hypothesis explores more cleverly, this is a hundred times as fast."""

import random
import time
from collections import Counter
from dataclasses import dataclass

from tests.unit.contract.fleet import WORKERS, Fleet, num_results

from headrace.broker import Broker
from headrace.moves import Verb

VERBS: tuple[Verb, ...] = ("chunk", "chunk", "chunk", "chunk", "renew", "yield", "lost", "stop", "length")
#: Requests that are thrown about at the same time.
NUM_ALIVE = 20
_AUDIT_EVERY = 250


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """What a run was made of."""

    calls: Counter[str]
    num_repeated: int
    num_lost: int
    num_requests: int
    seconds: float


class Fuzz:
    """Random steps of a fleet; ``seed`` repeats them."""

    def __init__(self, broker: Broker, seed: int) -> None:
        self.fleet = Fleet(broker)
        self._random = random.Random(seed)
        self._num_born = NUM_ALIVE
        self._num_repeated = self._num_lost = 0
        self._calls: Counter[str] = Counter()

    def run(self, num_calls: int) -> Fuzzed:
        """Send so many calls, audit now and then, and bring everything to its end."""
        begin_s = time.perf_counter()
        audited = 0
        while self._calls.total() < num_calls:
            before = len(self.fleet.history)
            self._step()
            self._calls.update(call.move for call in self.fleet.history[before:])
            if self._calls.total() - audited >= _AUDIT_EVERY:
                audited = self._calls.total()
                self.fleet.audit()
        self.fleet.drain()
        seconds = time.perf_counter() - begin_s
        return Fuzzed(self._calls, self._num_repeated, self._num_lost, len(self.fleet.model.known), seconds)

    def _step(self) -> None:
        fleet, pick = self.fleet, self._random
        if fleet.history and pick.random() < 0.3:
            self._num_repeated += 1
            # Half of them at once, as a client does whose reply was lost; half at any later time.
            index = -1 if pick.random() < 0.5 else pick.randrange(len(fleet.history))
            self._calls[fleet.history[index].move] += 1
            fleet.again(index)
            return
        steps = (self._produce, self._schedule, self._work, self._work, self._disturb)
        pick.choices(steps, weights=(5, 8, 6, 6, 2))[0]()

    def _name(self) -> str:
        if self._random.random() < 0.2:
            self._num_born += 1
        return f"r{self._num_born - self._random.randrange(NUM_ALIVE)}"

    def _result_name(self) -> str:
        name = self._name()
        return name if num_results(name) == 1 or self._random.random() < 0.3 else f"{name}/{self._random.randrange(2)}"

    def _produce(self) -> None:
        self._random.choice((self.fleet.submit, self.fleet.submit, self.fleet.xadd))(self._name())

    def _schedule(self) -> None:
        pick, ready = self._random, [r.request_id for r in self.fleet.actors.broker.window(8).requests]
        if pick.random() < 0.1:
            self.fleet.remember(pick.randint(0, 3), pick.choice(("json", "mp")))
        elif pick.random() < 0.4:
            self.fleet.admit(pick.randint(1, 8))
        else:
            self.fleet.dispatch(pick.sample(ready, min(len(ready), pick.randint(1, 4))) or [self._name()])

    def _work(self) -> None:
        pick, worker = self._random, self._random.choice(WORKERS)
        lost = pick.random() < 0.15
        self._num_lost += lost
        if not self.fleet.holdings[worker] or pick.random() < 0.3:
            self.fleet.claim(worker, pick.randint(0, 8), lost)
            return
        verbs = ((request_id, pick.choice(VERBS)) for request_id in self.fleet.holdings[worker])
        flush = {i: (verb, pick.randint(1 if verb == "chunk" else 0, 4)) for i, verb in verbs}
        self.fleet.emit(worker, flush, lost)

    def _disturb(self) -> None:
        pick = self._random
        disturbance = pick.choice((self.fleet.cancel, self.fleet.xadd_cancel, self._time_passes, self._time_passes))
        disturbance(self._result_name())

    def _time_passes(self, request_id: str) -> None:
        self.fleet.time_passes([request_id, self._result_name(), self._result_name()])
        self.fleet.reap()
