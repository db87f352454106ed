"""``headrace status``: for people and for scripts."""

import json
import os

import pytest
from tests.unit.cli.conftest import Headrace

from headrace.broker import Broker
from headrace.keys import RequestStream


def _heartbeat(queue: Broker, worker: str) -> None:
    details = {"host": "here", "worker_pid": 1, "courier_pid": 2, "engine_pid": 3, "revision": "abc", "max_rows": 32,
               "kv_tokens": 4096, "num_rows": 5}  # fmt: skip
    queue.client.hset(queue.keys.worker(worker), "info", json.dumps(details))
    queue.client.zadd(queue.keys.workers, {worker: queue.now_ms()})


def test_json_tells_totals_lanes_leader_and_workers_with_their_processes(headrace: Headrace, queue: Broker) -> None:
    headrace("submit", "hello", "--no-wait", "--max-tokens", "10", "--lane", "bulk")
    queue.leadership.take("scheduler-7", 60_000)
    _heartbeat(queue, "w1")
    status, out, _ = headrace("status", "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["queue"], found["leader"]) == ("test", "scheduler-7")
    assert found["load"]["queued"] == 1
    assert found["load"]["queued_tokens"] > 10
    assert found["streams"] == {"requests": 0, "requests:interactive": 0, RequestStream("bulk").suffix: 1}
    [worker] = found["workers"]
    assert (worker["worker"], worker["num_rows"], worker["details"]["engine_pid"]) == ("w1", 5, 3)
    assert 0 <= found["now_ms"] - worker["seen_ms"] < 10_000


def test_a_person_is_told_what_is_missing(headrace: Headrace, queue: Broker) -> None:
    out = headrace("status")[1]
    assert "scheduler none" in out
    assert out.splitlines()[-1] == "no worker"
    headrace("submit", "hello", "--no-wait")
    assert "requests: 1 not admitted yet" in headrace("status")[1]
    _heartbeat(queue, "w1")
    last = headrace("status")[1].splitlines()[-1]
    assert last.startswith("worker w1")
    assert "engine_pid 3" in last


def test_a_scheduler_that_is_late_to_renew_its_lease_is_still_named(headrace: Headrace, queue: Broker) -> None:
    for name in ("s2", "s1"):
        queue.living.beat("scheduler", name, {"host": "here", "leads": name == "s1"}, 60_000)
    alive = "scheduler none has renewed its lease within a second, alive: s1, s2"
    assert alive in headrace("status")[1]
    assert alive in " ".join(headrace("top", "--once")[1].split())
    queue.leadership.take("s1", 60_000)
    assert "scheduler s1\n" in headrace("status")[1]
    assert "scheduler s1; standing by: s2" in headrace("top", "--once")[1]


def test_a_batch_that_found_its_beginnings_in_memory_is_told_with_what_was_computed(
    headrace: Headrace, queue: Broker
) -> None:
    cut = {"kind": "cut", "batch": "5-0", "class": "c", "rows": 1, "tokens": 5, "longest": 5, "ms": 114}
    ran = {"kind": "ran", "batch": "5-0", "class": "c", "worker": "w", "rows": 1, "tokens": 1, "ms": 43}
    for entry in (cut, ran):
        queue.client.xadd(queue.keys.batch_log, entry)
    assert "predicted 114.0 ms  took 43.0 ms  1 of 5 tokens computed, the others were known" in headrace("status")[1]


def test_a_password_is_not_shown(headrace: Headrace, queue: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    socket = os.environ["HEADRACE_REDIS_URL"].removeprefix("unix://")
    queue.client.acl_setuser("reader", enabled=True, passwords=["+secret"], categories=["+@all"], keys=["*"])
    try:
        monkeypatch.setenv("HEADRACE_REDIS_URL", f"unix://reader:secret@{socket}")
        for arguments in (["status"], ["status", "--json"]):
            status, out, err = headrace(*arguments)
            assert status == 0
            assert "secret" not in out + err
    finally:
        queue.client.acl_deluser("reader")
