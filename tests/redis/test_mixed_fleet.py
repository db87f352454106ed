"""Two classes of workers on one queue: each runs what its own costs would have cut, and neither waits for the dead."""

from collections.abc import Sequence

from tests.conftest import fast_settings
from tests.unit.contract.actors import Actors, Holding

from headrace.broker import Broker
from headrace.moves import HeartbeatCall
from headrace.testing.servers import Server
from headrace.workers.costs.table import CostTable
from headrace.workers.scheduler.dispatcher import Dispatcher

MAX_ROWS = 8
#: A batch costs the same whatever it holds: as many as possible go together.
PER_BATCH = CostTable((1, 1000), (1, 8), ((50.0, 50.0), (50.0, 50.0)))
#: Only padded tokens cost: no two requests of different lengths share a batch.
PER_TOKEN = CostTable.linear(1e-3, 1.0, 1000, 8, packs=False)


class StubFleet:
    """One worker of each class, reduced to its calls, and the real dispatcher."""

    def __init__(self, broker: Broker) -> None:
        self.actors = Actors(broker)
        self.dispatcher = Dispatcher(broker, broker.settings)
        self.ran: dict[str, list[list[int]]] = {"batches": [], "tokens": []}
        broker.client.hset(broker.keys.cost, mapping={"batches": PER_BATCH.encode(), "tokens": PER_TOKEN.encode()})

    def queue(self, count: int) -> None:
        """Requests of which no two have the same length."""
        for index in range(count):
            length = 4 + 4 * (index * 37 % count)
            self.actors.queued(f"r{index}", prompt_tokens=length, cost_tokens=length)

    def schedule(self, classes: Sequence[str]) -> None:
        """One round of the scheduler, with the heartbeats of those that live."""
        broker, info = self.actors.broker, '{"max_rows": 8, "kv_tokens": 9000, "num_rows": 0, "class": "%s"}'
        for name in classes:
            broker.run(HeartbeatCall("worker", name, info % name, 60_000, name))
        self.dispatcher.fit(broker.living.workers(broker.settings.lease_ms), broker.costs.tables())
        self.dispatcher.dispatch()

    def work(self, name: str) -> int:
        """A worker of a class takes a batch and ends it; return its rows."""
        found = self.actors.claim(name, worker_class=name, patience_ms=60_000)
        if not found.rows:
            return 0
        prompts = [int(self.actors.broker.request_fields(row.request_id)["prompt"]) for row in found.rows]
        self.ran[name].append(sorted(prompts))
        for row in found.rows:
            self.actors.wrote(Holding(row, name), "stop", 1)
        return len(found.rows)

    def run(self, classes: Sequence[str]) -> None:
        """Schedule and work until nothing is left, the fast class three times as often."""
        for turn in range(1000):
            self.schedule(classes)
            for name in classes:
                if name == "tokens" or turn % 3 == 0:
                    self.work(name)
            load = self.actors.broker.load()
            if not load["queued"]:
                return
        raise AssertionError(f"still waiting: {load}")


def test_each_class_runs_batches_that_its_own_table_would_have_cut(valkey_server: Server) -> None:
    fleet = StubFleet(
        Broker.connect(fast_settings(redis_url=valkey_server.url, max_batch_rows=MAX_ROWS, lease_ms=60_000))
    )
    fleet.queue(96)
    fleet.run(["batches", "tokens"])
    assert {len(batch) for batch in fleet.ran["tokens"]} == {1}
    # A window seldom divides by the largest batch, and for the last one nothing may be left to share it with.
    sizes = [len(batch) for batch in fleet.ran["batches"]]
    assert min(sizes[:-1]) > 1
    assert sum(sizes) / len(sizes) > MAX_ROWS / 2
    num_rows = {name: sum(map(len, batches)) for name, batches in fleet.ran.items()}
    assert sum(num_rows.values()) == 96
    assert min(num_rows.values()) >= 16
    records = fleet.actors.broker.costs.batch_log(1000)
    assert {record.worker_class for record in records} == {"batches", "tokens"}
    assert all(record.predicted_ms == 50.0 for record in records if record.worker_class == "batches")


def test_what_was_cut_for_a_class_that_dies_is_run_by_the_other(valkey_server: Server) -> None:
    fleet = StubFleet(
        Broker.connect(fast_settings(redis_url=valkey_server.url, max_batch_rows=MAX_ROWS, lease_ms=60_000))
    )
    fleet.queue(64)
    fleet.schedule(["batches", "tokens"])
    waiting = fleet.actors.broker.waiting_batches()
    assert set(waiting) == {"batches", "tokens"}
    while fleet.work("batches"):
        pass
    assert fleet.actors.broker.waiting_batches() == {"tokens": waiting["tokens"]}
    # The class falls silent for longer than a lease, and no scheduler looks.
    client, lease_ms = fleet.actors.client, fleet.actors.settings.lease_ms
    client.zadd("hr:{test}:classes", {"tokens": fleet.actors.broker.now_ms() - lease_ms})
    client.zrem("hr:{test}:workers", "tokens")
    assert fleet.work("batches") > 0
    fleet.run(["batches"])
    assert sum(map(len, fleet.ran["batches"])) == 64
