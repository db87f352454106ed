"""A server whose memory is full: what runs goes on to its end, what is new is refused by name, nothing is lost."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
import redis
from tests.conftest import fast_settings
from tests.unit.contract.actors import Actors
from tests.unit.contract.audit import check
from tests.waiting import until

from headrace.async_broker import AsyncBroker
from headrace.broker import Broker
from headrace.errors import OverloadedError
from headrace.testing.servers import Server
from headrace.testing.words import word_tokenizer
from headrace.workers.scheduler.admission import Admitter
from headrace.workers.scheduler.process import Scheduler


@pytest.fixture
def actors(server: Server) -> Iterator[Actors]:
    broker = Broker.connect(fast_settings(redis_url=server.url))
    actors = Actors(broker)
    actors.no_amnesty()
    yield actors
    broker.client.config_set("maxmemory", 0)
    check(broker)
    broker.close()


def fill(actors: Actors) -> None:
    """From here on the server has less memory than it uses, and knows no script yet."""
    actors.client.script_flush()
    actors.client.config_set("maxmemory", 1)


def test_running_requests_go_on_to_their_end(actors: Actors) -> None:
    a, b, c, d = actors.running("a", "b", "c", "d")
    actors.queued("e")
    fill(actors)
    actors.wrote(a, "chunk", 3)
    actors.wrote(a, "stop", 1)
    assert actors.emit(b.emit("renew"), c.emit("yield")).refused == frozenset()
    assert actors.cancel("b") == "running"
    assert actors.cancel("nobody") == "unknown"
    assert actors.emit(d.emit("lost")).refused == frozenset()
    assert actors.dispatch("e", "c").entry
    assert [row.request_id for row in actors.claim("w2").rows] == ["e", "c"]
    assert actors.reap().num_seen == 0


def test_a_lost_workers_requests_come_back(actors: Actors) -> None:
    actors.running("a")
    actors.make_due("a")
    fill(actors)
    assert actors.reap().num_requeued == 1


def test_a_new_request_is_refused_by_name_and_goes_in_once_there_is_room(actors: Actors) -> None:
    fill(actors)
    with pytest.raises(OverloadedError, match="memory is full"):
        actors.submit("a")
    with pytest.raises(redis.OutOfMemoryError):
        actors.xadd("a")
    actors.client.config_set("maxmemory", 0)
    assert actors.submit("a").verdict == "ok"


def test_an_admission_is_refused_whole_and_its_entries_stay(actors: Actors) -> None:
    for request_id in "abc":
        actors.xadd(request_id)
    fill(actors)
    with pytest.raises(OverloadedError):
        actors.admit()
    assert actors.client.xlen("hr:{test}:requests") == 3
    actors.client.config_set("maxmemory", 0)
    assert actors.admit() == ["queued"] * 3


def test_the_scheduler_goes_on_leading(actors: Actors) -> None:
    # Previously SET was tried first, which a full server refuses even to the leader: nothing was dispatched any more.
    assert actors.broker.leadership.take("s1", 60_000)
    fill(actors)
    assert actors.broker.leadership.take("s1", 60_000)
    assert not actors.broker.leadership.take("s2", 60_000)
    actors.broker.leadership.resign("s1")
    assert actors.broker.leadership.take("s2", 60_000)


def test_workers_stay_on_the_list(actors: Actors) -> None:
    fill(actors)

    async def beat() -> None:
        broker = AsyncBroker(redis.asyncio.Redis.from_url(actors.settings.redis_url, protocol=2), actors.settings)
        await broker.heartbeat("w1", {"max_rows": 8, "kv_tokens": 100, "num_rows": 1}, 5_000)
        await broker.close()

    asyncio.run(beat())
    (worker,) = actors.broker.living.workers(5_000)
    assert (worker.worker, worker.max_rows, worker.kv_tokens, worker.num_rows) == ("w1", 8, 100, 1)


def test_schedulers_stay_on_the_list(actors: Actors) -> None:
    fill(actors)
    actors.broker.living.beat("scheduler", "s1", {"host": "here"}, 5_000)
    (scheduler,) = actors.broker.living.heartbeats("scheduler", 5_000)
    assert (scheduler.name, scheduler.details) == ("s1", {"host": "here"})


def test_a_scheduler_with_a_new_tenant_starts_and_serves_it_once_there_is_room(actors: Actors) -> None:
    fill(actors)
    settings = actors.broker.settings.model_copy(update={"tenants": {"new": 1.0}})
    broker = Broker.connect(settings)
    scheduler = Scheduler(broker, Admitter(word_tokenizer(64), "r1", settings), settings)
    running = threading.Thread(target=scheduler.run)
    running.start()
    try:
        until(lambda: scheduler.tally.leads)
        assert not actors.client.hexists(broker.keys.tenants, "bulk:new")
        actors.client.config_set("maxmemory", 0)
        until(lambda: actors.client.hexists(broker.keys.tenants, "bulk:new"))
    finally:
        scheduler.stop()
        running.join(10)
        broker.close()
