"""``headrace health``: the exit status by which a container engine knows whether to worry."""

import socket
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.conftest import LEASE_MS
from tests.unit.cli.conftest import Headrace

from headrace.broker import Broker
from headrace.keys import ProcessKind
from headrace.testing.servers import free_port

#: A lease that nothing but a test's end is longer than, for a heartbeat that a busy machine reads late.
PATIENT = ("--lease-ms", "60000")
HERE: dict[str, Any] = {"host": socket.gethostname(), "max_rows": 8, "kv_tokens": 4096, "num_rows": 0}


@pytest.mark.parametrize("kind", ["worker", "scheduler"])
def test_a_process_of_this_host_that_beats_is_healthy(headrace: Headrace, queue: Broker, kind: ProcessKind) -> None:
    queue.living.beat(kind, "p1", HERE, 6 * LEASE_MS)
    for arguments in (["health", kind], ["health"]):
        status, out, err = headrace(*arguments, *PATIENT)
        assert (status, err) == (0, "")
        assert out.startswith("p1: ")


def test_one_that_fell_silent_for_a_lease_is_not(headrace: Headrace, queue: Broker) -> None:
    queue.living.beat("worker", "p1", HERE, 6 * LEASE_MS)
    time.sleep(LEASE_MS / 1000 + 0.05)
    status, out, err = headrace("health", "worker")
    assert (status, out) == (1, "")
    assert err == (f"headrace: no worker of {socket.gethostname()} has sent a heartbeat to queue test within a lease\n")


def test_neither_another_hosts_nor_another_kinds_heartbeat_counts(headrace: Headrace, queue: Broker) -> None:
    queue.living.beat("worker", "p1", HERE | {"host": "elsewhere"}, 6 * LEASE_MS)
    queue.living.beat("scheduler", "p2", HERE, 6 * LEASE_MS)
    assert headrace("health", "worker", *PATIENT)[0] == 1
    assert headrace("health", "scheduler", *PATIENT)[0] == 0


def test_one_that_has_left_is_not_healthy(headrace: Headrace, queue: Broker) -> None:
    queue.living.beat("scheduler", "p1", HERE, 6 * LEASE_MS)
    queue.living.leave("scheduler", "p1")
    assert headrace("health", "scheduler")[0] == 1


def test_an_rq_worker_of_this_host_is_healthy_while_rq_hears_of_it(headrace: Headrace, queue: Broker) -> None:
    def register(name: str, host: str, age_s: int) -> None:
        seen = (datetime.now(UTC) - timedelta(seconds=age_s)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        fields = {"hostname": host, "last_heartbeat": seen, "birth": seen, "queues": "headrace", "state": "idle"}
        queue.client.hset(f"rq:worker:{name}", mapping=fields)
        queue.client.sadd("rq:workers", f"rq:worker:{name}")

    register("elsewhere", "elsewhere", 0)
    register("silent", HERE["host"], 31)
    assert headrace("health", "rq")[0] == 1
    register("r1", HERE["host"], 2)
    for arguments in (["health", "rq"], ["health"]):
        status, out, _ = headrace(*arguments)
        assert status == 0
        assert out.startswith("r1: 2")
    assert headrace("health", "rq", "--set", "rq_lease_ms=60000")[1].startswith(("r1: 2", "silent: 3"))


def test_an_unknown_kind_is_named_with_those_there_are(headrace: Headrace, queue: Broker) -> None:
    status, _, err = headrace("health", "engine")
    assert (status, err) == (2, "headrace: health engine: must be one of worker, scheduler, rq\n")


def test_without_a_server_nothing_is_healthy(headrace: Headrace) -> None:
    assert headrace("health", "--redis-url", f"redis://127.0.0.1:{free_port()}/0")[0] == 1
