import pytest
from tests.unit.contract.actors import Actors

from headrace.connection import check_contract
from headrace.errors import ContractVersionError


@pytest.mark.parametrize("state", ["queued", "tomb", None])
def test_a_request_of_another_version_is_left_alone(actors: Actors, state: str | None) -> None:
    theirs = {"v": "2", "words": "unknown here"} | ({"state": state} if state else {})
    actors.client.hset("hr:{test}:request:a", mapping=theirs)
    before = actors.client.hgetall("hr:{test}:request:a")
    actors.cancel("a")
    actors.submit("a")
    actors.xadd("a")
    assert actors.admit() == ["duplicate"]
    actors.xadd_cancel("a")
    actors.admit()
    actors.dispatch("a")
    actors.client.zadd("hr:{test}:due", {"a": 1})
    actors.reap()
    assert actors.client.hgetall("hr:{test}:request:a") == before
    assert actors.client.pttl("hr:{test}:request:a") == -1
    assert actors.chunks("a") == {}
    actors.client.delete("hr:{test}:request:a")
    actors.client.zrem("hr:{test}:due", "a")


def test_a_batch_of_another_version_is_left_for_its_workers(actors: Actors) -> None:
    theirs = actors.client.xadd("hr:{test}:batches", {"v": "2", "ids": "x", "solo": "0"})
    actors.dispatched("a")
    assert [row.request_id for row in actors.claim("w1").rows] == ["a"]
    assert [entry for entry, _ in actors.client.xrange("hr:{test}:batches")] == [theirs]


def test_a_worker_writes_nothing_into_a_request_that_has_become_another_versions(actors: Actors) -> None:
    (held,) = actors.running("a")
    actors.client.hset("hr:{test}:request:a", "v", "2")
    before = actors.client.hgetall("hr:{test}:request:a")
    for row in (held.emit("chunk", 1), held.emit("stop", 1), held.emit("yield"), held.emit("lost"), held.emit("renew")):
        assert actors.emit(row).refused == {"a"}
    assert actors.client.hgetall("hr:{test}:request:a") == before
    actors.client.hset("hr:{test}:request:a", "v", "1")


def test_a_queue_is_adopted_once_and_served_only_under_its_versions(actors: Actors) -> None:
    actors.broker.adopt_contract()
    actors.broker.adopt_contract()
    assert actors.client.hgetall("hr:{test}:contract") == {b"min": b"1", b"max": b"1"}
    actors.client.hset("hr:{test}:contract", mapping={"min": "2", "max": "3"})
    with pytest.raises(ContractVersionError, match="versions 2 to 3 of the contract, this program speaks 1"):
        actors.broker.adopt_contract()


@pytest.mark.parametrize(("lowest", "highest"), [(None, None), (b"1", b"1"), (b"0", b"7"), (b"1", b"2")])
def test_a_range_that_holds_this_version_is_served(lowest: bytes | None, highest: bytes | None) -> None:
    check_contract(lowest, highest, "q")
