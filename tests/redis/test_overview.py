"""One look at a queue, on both servers."""

import time

import pytest
from tests.unit.contract.actors import Actors

from headrace import overview
from headrace.broker import Broker
from headrace.keys import LANES, RequestStream
from headrace.overview import look
from headrace.testing.servers import Server


@pytest.fixture
def actors(broker: Broker) -> Actors:
    return Actors(broker)


def test_each_lane_is_told_with_what_is_new_what_is_ready_and_how_long_the_oldest_waits(actors: Actors) -> None:
    bulk, interactive = RequestStream("bulk"), RequestStream("interactive")
    for request_id in "abc":
        actors.submit(request_id, stream=bulk)
    actors.admit(bulk)
    time.sleep(0.05)
    actors.submit("d", stream=bulk)
    actors.xadd("e", stream=interactive)
    found = {lane.lane: lane for lane in look(actors.broker, 0).lanes}
    assert list(found) == list(LANES)
    assert [(lane.num_new, lane.num_ready) for lane in found.values()] == [(1, 0), (0, 0), (1, 3)]
    assert found["normal"].oldest_wait_ms is None
    assert 50 <= (found["bulk"].oldest_wait_ms or 0) < 10_000
    assert 0 <= (found["interactive"].oldest_wait_ms or 0) < (found["bulk"].oldest_wait_ms or 0)


def test_what_a_tenant_asked_counts_for_its_lane(actors: Actors) -> None:
    actors.limit(tenants={"t1": 1.0})
    stream = RequestStream("bulk", "t1")
    actors.broker.serve_tenants([stream])
    actors.xadd("t1:a", stream=stream)
    found = look(actors.broker, 0)
    assert [lane.num_new for lane in found.lanes] == [0, 0, 1]
    assert found.streams["requests:bulk:t1"] == 1
    actors.admit(stream)
    assert [lane.num_ready for lane in look(actors.broker, 0).lanes] == [0, 0, 1]


def test_of_a_long_queue_a_sample_stands_for_all(actors: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    bulk = RequestStream("bulk")
    for number in range(40):
        actors.submit(f"r{number}", stream=bulk if number % 2 else RequestStream("normal"))
    actors.admit()
    actors.admit(bulk)
    assert not look(actors.broker, 0).is_sampled
    monkeypatch.setattr(overview, "SAMPLE_REQUESTS", 10)
    found = look(actors.broker, 0)
    assert found.is_sampled
    assert sum(lane.num_ready for lane in found.lanes) == found.load["ready"] == 40


def test_it_tells_who_works_and_what_batches_cost_and_writes_nothing(actors: Actors, server: Server) -> None:
    details = {"host": "here", "max_rows": 8, "kv_tokens": 100, "num_rows": 1, "tokens_per_s": 2.5}
    for name in ("w1", "w2"):
        actors.broker.living.beat("worker", name, details, 60_000)
    actors.broker.living.beat("scheduler", "s1", {"host": "here"}, 60_000)
    actors.client.zadd(actors.broker.keys.workers, {"long gone": 1})
    actors.submit("a")
    actors.admit()
    actors.dispatch("a")
    with server.client() as client:
        changes = client.info("persistence")["rdb_changes_since_last_save"]
        found = look(actors.broker, 5)
        assert client.info("persistence")["rdb_changes_since_last_save"] == changes
    assert [worker.worker for worker in found.workers] == ["w1", "w2"]
    assert found.tokens_per_s == 5.0
    assert [scheduler.name for scheduler in found.schedulers] == ["s1"]
    assert [(batch.num_rows, batch.run) for batch in found.batches] == [(1, None)]
    assert look(actors.broker, 0).batches == ()
