"""Hypothesis drives a fleet on a bad network; the contract's model knows what every answer must be."""

import fakeredis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.conftest import fast_settings, understood_by_fakeredis
from tests.unit.contract.fleet import WORKERS, Fleet

from headrace.broker import Broker
from headrace.moves import Verb
from headrace.wire import Encoding

#: Names that end in 4 or 9 ask for two results.
ids = st.sampled_from(["r0", "r1", "r2", "r4", "r4", "r9"])
#: What may be cancelled, dispatched and run.
names = st.sampled_from(["r0", "r1", "r2", "r4", "r4/0", "r4/1", "r9/0", "r9/1"])
groups = st.lists(names, min_size=1, max_size=4)
workers = st.sampled_from(WORKERS)
verbs: st.SearchStrategy[Verb] = st.sampled_from(["chunk", "chunk", "renew", "yield", "lost", "stop", "length"])
lost = st.booleans()


def sized(verb: Verb, num_new: int) -> tuple[Verb, int]:
    """A chunk has a token at least, and a terminal may have none."""
    return verb, max(num_new, 1) if verb == "chunk" else num_new


flushes = st.dictionaries(names, st.builds(sized, verbs, st.integers(0, 3)), min_size=1)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        client = understood_by_fakeredis(fakeredis.FakeRedis(server=fakeredis.FakeServer(), version=(7, 0)))
        self.fleet = Fleet(Broker(client, fast_settings()))

    @rule(request_id=ids)
    def submit(self, request_id: str) -> None:
        self.fleet.submit(request_id)

    @rule(request_id=ids)
    def xadd(self, request_id: str) -> None:
        self.fleet.xadd(request_id)

    @rule(request_id=names)
    def cancel(self, request_id: str) -> None:
        self.fleet.cancel(request_id)

    @rule(request_id=names)
    def xadd_cancel(self, request_id: str) -> None:
        self.fleet.xadd_cancel(request_id)

    @rule(count=st.integers(1, 4))
    def admit(self, count: int) -> None:
        self.fleet.admit(count)

    @rule(num_tokens=st.integers(0, 3), encoding=st.sampled_from(["json", "mp"]))
    def remember(self, num_tokens: int, encoding: Encoding) -> None:
        self.fleet.remember(num_tokens, encoding)

    @rule(request_ids=groups)
    def dispatch(self, request_ids: list[str]) -> None:
        self.fleet.dispatch(request_ids)

    @rule(request_ids=groups)
    def time_passes(self, request_ids: list[str]) -> None:
        self.fleet.time_passes(request_ids)

    @rule()
    def reap(self) -> None:
        self.fleet.reap()

    @rule(worker=workers, room=st.integers(0, 4), lost=lost)
    def claim(self, worker: str, room: int, lost: bool) -> None:
        self.fleet.claim(worker, room, lost)

    @precondition(lambda self: any(self.fleet.holdings.values()))
    @rule(worker=workers, flush=flushes, lost=lost)
    def emit(self, worker: str, flush: dict[str, tuple[Verb, int]], lost: bool) -> None:
        self.fleet.emit(worker, flush, lost)

    @precondition(lambda self: self.fleet.history)
    @rule(data=st.data())
    def again(self, data: st.DataObject) -> None:
        self.fleet.again(data.draw(st.integers(0, len(self.fleet.history) - 1)))

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        self.fleet.audit()

    def teardown(self) -> None:
        self.fleet.drain()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=40, derandomize=True)
