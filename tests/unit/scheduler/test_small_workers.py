"""A worker that can hold little is kept busy while others wait: at the start, behind rows that go on, after it died.

Dispatcher and moves are the real ones. Nothing is reaped: what could only go on once ``reap`` has taken it back stands
still here.
"""

from dataclasses import dataclass, field

import fakeredis
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import fast_settings, understood_by_fakeredis
from tests.unit.contract.actors import Actors, Holding

from headrace.broker import Broker
from headrace.heartbeat import WorkerInfo
from headrace.workers.scheduler.dispatcher import Dispatcher


@dataclass
class SmallWorker:
    """One worker, reduced to what it claims, and the dispatcher that feeds it."""

    actors: Actors
    max_rows: int
    kv_tokens: int
    rows: list[Holding] = field(default_factory=list)
    name: str = "w"

    def __post_init__(self) -> None:
        self.dispatcher = Dispatcher(self.actors.broker, self.actors.settings)

    @property
    def free(self) -> tuple[int, int]:
        """Rows and tokens."""
        cost_tokens = sum(self.cost(row.claimed.request_id) for row in self.rows)
        return self.max_rows - len(self.rows), self.kv_tokens - cost_tokens

    def cost(self, request_id: str) -> int:
        return int(self.actors.broker.request_fields(request_id)["cost"])

    def schedule(self) -> int:
        return self.dispatcher.dispatch()

    def beat(self, *, lives: bool = True) -> None:
        """What the scheduler knows of it from here on."""
        info = WorkerInfo(self.name, 0, self.max_rows, self.kv_tokens, len(self.rows), {"class": "small"})
        self.dispatcher.fit([info] if lives else [], {})

    def claim(self) -> int:
        free_rows, free_tokens = self.free
        if free_rows <= 0:
            return 0
        room = {"max_rows": self.max_rows, "max_tokens": self.kv_tokens, "worker_class": "small"}
        claimed = self.actors.claim(self.name, free_rows=free_rows, free_tokens=free_tokens, **room)
        taken = [Holding(row, self.name) for row in claimed.rows]
        for holding in taken:
            self.actors.wrote(holding, "chunk", 1)
        self.rows += taken
        return len(taken)

    def work(self) -> None:
        """Schedule and claim until neither changes anything."""
        self.beat()
        while self.schedule() + self.claim():
            pass

    def end(self, count: int) -> None:
        """Some rows end."""
        ended, self.rows = self.rows[:count], self.rows[count:]
        for holding in ended:
            self.actors.wrote(holding, "length", 1)

    def work_to_the_end(self) -> int:
        """Let all rows end, and those that follow, until none does; return how many requests still wait."""
        while self.rows:
            self.end(len(self.rows))
            self.work()
        return self.actors.broker.load()["queued"]

    def lose_engine(self) -> None:
        """Its engine dies, and stays away for longer than the scheduler believes in it."""
        self.schedule()
        for holding in self.rows:
            self.actors.emit(holding.emit("lost"))
        self.rows = []
        self.beat(lives=False)
        while self.schedule():
            pass

    @property
    def is_busy(self) -> bool:
        """Nobody waits, or less is free than a quarter of it, or than one of those who wait may need."""
        load = self.actors.broker.load()
        if not load["queued"]:
            return True
        waiting = [name for name in names(self.actors) if self.actors.state(name) in ("queued", "batched")]
        free_rows, free_tokens = self.free
        needed = max(self.kv_tokens // 4, *(self.cost(name) for name in waiting))
        return free_rows < max(1, self.max_rows // 4) or free_tokens < needed


def names(actors: Actors) -> list[str]:
    prefix = actors.broker.keys.request("")
    return [key.decode().removeprefix(prefix) for key in actors.client.scan_iter(prefix + "*")]


def queue_of(costs: list[int]) -> Actors:
    """A queue of its own with requests of such costs."""
    client = understood_by_fakeredis(fakeredis.FakeRedis(server=fakeredis.FakeServer(), version=(7, 0)))
    actors = Actors(Broker(client, fast_settings()))
    for number, cost in enumerate(costs):
        actors.queued(f"r{number}", prompt_tokens=1, cost_tokens=cost)
    return actors


def test_a_batch_cut_while_no_worker_lives_is_no_larger_than_any_can_hold() -> None:
    actors = queue_of([40] * 30)
    worker = SmallWorker(actors, max_rows=12, kv_tokens=2048)
    worker.work()
    worker.lose_engine()
    assert set(actors.broker.waiting_batches()) == {"small", ""}, "somebody may come whom nobody knows yet"
    worker.work()
    assert len(worker.rows) == 12
    assert worker.work_to_the_end() == 0


def test_rows_that_end_are_followed_by_others_while_one_goes_on() -> None:
    actors = queue_of([40] * 40)
    worker = SmallWorker(actors, max_rows=12, kv_tokens=2048)
    worker.work()
    worker.end(6)
    worker.work()
    assert len(worker.rows) == 12, "and no batch of twelve waits for the last six"


def test_one_request_larger_than_the_worker_does_not_keep_others_from_it() -> None:
    actors = queue_of([4000] + [40] * 12)
    worker = SmallWorker(actors, max_rows=12, kv_tokens=2048)
    worker.work()
    assert len(worker.rows) >= 12 - 12 // 4


@settings(max_examples=60)
@given(
    max_rows=st.integers(1, 20),
    kv_tokens=st.integers(100, 400),
    costs=st.lists(st.integers(2, 100), min_size=12, max_size=40),
    deeds=st.lists(st.integers(0, 8), max_size=6),
)
def test_whatever_dies_or_ends_a_worker_is_busy_while_others_wait(
    max_rows: int, kv_tokens: int, costs: list[int], deeds: list[int]
) -> None:
    worker = SmallWorker(queue_of(costs), max_rows, kv_tokens)
    worker.work()
    assert worker.is_busy
    for count in deeds:  # 0: its engine dies
        if count:
            worker.end(count)
        else:
            worker.lose_engine()
        worker.work()
        assert worker.is_busy
    assert worker.work_to_the_end() == 0
