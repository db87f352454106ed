"""Several schedulers on one queue: real processes, killed as kill -9 does. ``test_faults.py`` says where."""

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from tests.redis.scheduler_process import leader_pid, scheduler
from tests.unit.contract.actors import Actors, Holding
from tests.unit.contract.audit import check
from tests.waiting import until

from headrace.broker import Broker
from headrace.config import Settings
from headrace.keys import LANES, RequestStream
from headrace.testing.servers import Server

NUM_REQUESTS = 24
#: Small batches and windows, so that a round of a scheduler has many commands.
GIVEN: dict[str, Any] = {"queue": "test", "model": "test", "lease_ms": 1_000, "window": 8, "max_batch_rows": 4,
         "max_backlog_batches": 3}  # fmt: skip


@pytest.fixture
def actors(valkey_server: Server) -> Iterator[Actors]:
    broker = Broker.connect(Settings(redis_url=valkey_server.url, **GIVEN))
    yield Actors(broker)
    broker.close()


def ask(actors: Actors) -> set[str]:
    """Requests in all lanes; what a scheduler reads is theirs and nobody else's."""
    ids = {f"r{i}" for i in range(NUM_REQUESTS)}
    for i, request_id in enumerate(sorted(ids)):
        stream = actors.broker.keys.requests(RequestStream(LANES[i % 3]))
        actors.client.xadd(stream, {"id": request_id, "json": json.dumps({"prompt": "one two", "max_tokens": 2})})
    return ids


class Worker:
    """Claims batches, ends their rows at once, and remembers how often it was given each request."""

    def __init__(self, actors: Actors) -> None:
        self.actors = actors
        self.claimed: list[str] = []

    def work(self) -> None:
        rows = self.actors.claim("w1").rows
        self.claimed += [row.request_id for row in rows]
        if rows:
            self.actors.emit(*(Holding(row, "w1").emit("stop", 1) for row in rows))

    def has(self, ids: set[str]) -> bool:
        self.work()
        return set(self.claimed) >= ids


def settled(actors: Actors, worker: Worker, ids: set[str]) -> None:
    """Every request went to a worker exactly once, and nothing is left."""
    assert sorted(worker.claimed) == sorted(ids)
    check(actors.broker)
    load = actors.broker.load()
    assert {name: load[name] for name in ("queued", "running", "ready", "batches", "dead")} == dict.fromkeys(
        ("queued", "running", "ready", "batches", "dead"), 0
    )


def test_a_standby_takes_over_the_window_that_a_killed_leader_had_read(valkey_server: Server, actors: Actors) -> None:
    worker = Worker(actors)
    with scheduler(valkey_server, GIVEN) as one, scheduler(valkey_server, GIVEN) as other:
        until(lambda: len(actors.broker.living.heartbeats("scheduler", 60_000)) == 2)
        pids = {one.pid: one, other.pid: other}
        until(lambda: leader_pid(actors.broker))
        leader = pids[leader_pid(actors.broker)]
        # The leader admits a window and fills the backlog; nobody takes anything, so that the rest stays ready.
        ids = ask(actors)
        until(lambda: actors.broker.load()["ready"] > 0 and actors.broker.load()["batches"] == 3)
        leader.kill()
        leader.join()
        assert not worker.has(ids)
        until(lambda: worker.has(ids))
        (standby,) = (process for process in pids.values() if process is not leader)
        assert leader_pid(actors.broker) == standby.pid
    settled(actors, worker, ids)


def test_two_leaders_do_no_harm(valkey_server: Server, actors: Actors) -> None:
    # As when a leader sleeps past its lease and wakes: both work, and neither knows.
    worker = Worker(actors)
    with scheduler(valkey_server, GIVEN) as one:
        until(lambda: leader_pid(actors.broker) == one.pid)
        assert one.pid is not None
        os.kill(one.pid, signal.SIGSTOP)
        ids = ask(actors)
        with scheduler(valkey_server, GIVEN) as other:
            until(lambda: leader_pid(actors.broker) == other.pid)
            until(lambda: worker.claimed or worker.has(ids))
            os.kill(one.pid, signal.SIGCONT)
            until(lambda: worker.has(ids))
    settled(actors, worker, ids)
