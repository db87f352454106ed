"""Taking stock: what is counted again, and what counts as a leak."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.cli.conftest import Headrace
from tests.unit.producer.stub_fleet import StubFleet

from headrace.broker import Broker
from headrace.producer import Client
from headrace.stock import take_stock


def test_a_queue_that_served_requests_is_sound(headrace: Headrace, queue: Broker, stub_fleet: StubFleet) -> None:
    with Client(queue.settings) as client:
        client.submit("hi", n=2).result()
        client.submit("hi").result()
        assert client.cancel("never-came") == "unknown"
    status, out, _ = headrace("stock", "--json")
    found = json.loads(out)
    assert (status, found["leaks"], found["settled"]) == (0, [], True)
    assert found["states"] == {"done": 4, "tomb": 1}
    assert found["totals"] == found["recount"] == dict.fromkeys(found["totals"], 0)


def test_waiting_requests_are_counted_by_lane(headrace: Headrace, queue: Broker) -> None:
    for lane in ("bulk", "bulk", "interactive"):
        headrace("submit", "hello", "--no-wait", "--lane", lane)
    found = take_stock(queue)
    assert found.waiting == {"interactive": 1, "normal": 0, "bulk": 2}
    assert found.not_admitted == {"requests": 0, "requests:interactive": 1, "requests:bulk": 2}
    assert found.recount["queued"] == found.totals["queued"] == 3
    assert found.recount["queued_tokens"] == found.totals["queued_tokens"] > 0
    assert found.is_sound


LEAKS: dict[str, tuple[Callable[[Broker], object], str]] = {
    "a total": (lambda q: q.client.hincrby(q.keys.load, "running", 2), "running is 2, a recount gives 0"),
    "due": (lambda q: q.client.zrem(q.keys.due, "a"), "a lives, and nothing will look at it again"),
    "ready": (
        lambda q: q.client.hset(q.keys.request("a"), "state", "queued"),
        "a is queued, and no batch will have it",
    ),
    "a ghost": (lambda q: q.client.zadd(q.keys.due, {"gone": 1}), "gone is in due without a request"),
    "a job": (lambda q: q.client.set(q.keys.job("gone"), b"x"), "the job of gone is there without a request"),
    "a result": (lambda q: q.client.xadd(q.keys.out("gone"), {"mp": b"x"}), "the result of gone is there for ever"),
    "a hash": (
        lambda q: q.client.hset(q.keys.request("old"), mapping={"state": "done", "v": 1}),
        "old has ended, and its hash has no time to live",
    ),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_what_has_leaked_is_named(headrace: Headrace, queue: Broker, kind: str) -> None:
    spoil, sentence = LEAKS[kind]
    headrace("submit", "hello", "--no-wait", "--id", "a")
    assert headrace("stock")[0] == 0
    spoil(queue)
    status, out, _ = headrace("stock")
    assert status == 1
    assert sentence in out.splitlines()[-1]


def test_totals_that_never_stand_still_are_not_compared(queue: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    load = queue.load

    def moving() -> dict[str, int]:
        queue.client.hincrby(queue.keys.load, "queued", 1)
        return load()

    monkeypatch.setattr(queue, "load", moving)
    found = take_stock(queue)
    assert not found.settled
    assert found.totals != found.recount
    assert found.is_sound


def test_totals_that_a_deleted_request_has_left_too_high_are_put_right(headrace: Headrace, queue: Broker) -> None:
    for request_id in "ab":
        headrace("submit", "hello", "--no-wait", "--id", request_id)
    before = queue.load()
    queue.client.delete(queue.keys.request("a"))
    queue.client.zrem(queue.keys.due, "a")
    assert "queued is 2, a recount gives 1" in headrace("stock")[1]
    assert queue.load() == before, "a look changes nothing"
    status, out, _ = headrace("stock", "--repair", "--json")
    found = json.loads(out)
    assert (status, found["totals"], found["recount"]["queued"]) == (0, found["recount"], 1)
    assert queue.load()["queued_tokens"] * 2 == before["queued_tokens"]
    assert headrace("stock", "--repair")[0] == 0


def test_totals_that_change_meanwhile_are_not_replaced_by_an_old_count(
    headrace: Headrace, queue: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.client.hincrby(queue.keys.load, "running", 2)
    run = Broker.run

    def late(broker: Broker, call: Any) -> Any:
        if call.move == "recount":
            queue.client.hincrby(queue.keys.load, "running", 1)
        return run(broker, call)

    monkeypatch.setattr(Broker, "run", late)
    status, _, err = headrace("stock", "--repair")
    assert status == 2
    assert "did not stand still" in err
    assert queue.load()["running"] == 3
