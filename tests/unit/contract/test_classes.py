"""Batches that were cut by the costs of one class of workers, and the classes themselves."""

import pytest
from tests.unit.contract.actors import Actors

from headrace.batch_log import BatchRecord, BatchRun
from headrace.errors import ConfigurationError
from headrace.moves import BatchNote, Claimed, HeartbeatCall

PATIENCE_MS = 60_000


def beat(actors: Actors, worker: str, worker_class: str) -> int:
    return actors.broker.run(HeartbeatCall("worker", worker, "{}", 60_000, worker_class)).measure_ms


def cut_for(actors: Actors, worker_class: str, *request_ids: str) -> str:
    actors.queued(*request_ids)
    return actors.dispatch(*request_ids, note=BatchNote(worker_class, 8, 4, 12.5)).entry


def claimed(actors: Actors, worker: str, worker_class: str, patience_ms: int = PATIENCE_MS) -> list[str]:
    found = actors.claim(worker, worker_class=worker_class, patience_ms=patience_ms)
    return [row.request_id for row in found.rows]


def test_a_worker_passes_over_what_was_cut_for_another_class_that_lives(actors: Actors) -> None:
    beat(actors, "slow", "cpu"), beat(actors, "fast", "gpu")
    cut_for(actors, "gpu", "a", "b")
    entry = cut_for(actors, "cpu", "c")
    found = actors.claim("slow", worker_class="cpu", patience_ms=PATIENCE_MS)
    assert ([row.request_id for row in found.rows], found.batch) == (["c"], entry)
    assert claimed(actors, "slow", "cpu") == []
    assert claimed(actors, "fast", "gpu") == ["a", "b"]


def test_a_batch_does_not_wait_for_a_class_that_died(actors: Actors) -> None:
    beat(actors, "slow", "cpu"), beat(actors, "fast", "gpu")
    cut_for(actors, "gpu", "a")
    silent_since = actors.broker.now_ms() - actors.settings.lease_ms
    actors.client.zadd("hr:{test}:classes", {"gpu": silent_since})
    assert claimed(actors, "slow", "cpu") == ["a"]
    cut_for(actors, "never seen", "b")
    assert claimed(actors, "slow", "cpu") == ["b"]


def test_a_batch_that_has_waited_for_its_class_long_enough_goes_to_any(actors: Actors) -> None:
    beat(actors, "fast", "gpu")
    cut_for(actors, "gpu", "a")
    assert claimed(actors, "slow", "cpu") == []
    assert claimed(actors, "slow", "cpu", patience_ms=0) == ["a"]


def test_a_batch_for_nobody_in_particular_goes_to_any_class_in_its_turn(actors: Actors) -> None:
    beat(actors, "slow", "cpu"), beat(actors, "fast", "gpu")
    cut_for(actors, "", "a"), cut_for(actors, "gpu", "b")
    assert claimed(actors, "fast", "gpu") == ["a"]
    assert claimed(actors, "fast", "gpu") == ["b"]


def test_every_class_has_a_backlog_of_its_own(actors: Actors) -> None:
    actors.limit(max_backlog_batches=1)
    actors.queued("a", "b", "c", "d")
    assert not actors.dispatch("a", note=BatchNote("cpu")).full
    assert actors.dispatch("b", note=BatchNote("cpu")).full
    assert not actors.dispatch("b", note=BatchNote("gpu")).full
    assert not actors.dispatch("c").full
    assert actors.dispatch("d").full
    assert actors.broker.waiting_batches() == {"cpu": 1, "gpu": 1, "": 1}


def test_a_batch_for_a_class_comes_back_soon_where_nobody_can_hold_it(actors: Actors) -> None:
    before = actors.broker.now_ms()
    cut_for(actors, "gpu", "a")
    due = actors.due("a")
    assert due is not None
    assert due - before < 3 * actors.settings.lease_ms
    actors.make_due("a")
    actors.reap()
    assert (actors.state("a"), actors.broker.waiting_batches().total()) == ("queued", 0)


def test_a_repeated_claim_names_its_batch_again(actors: Actors) -> None:
    entry = cut_for(actors, "gpu", "a")
    call = actors.claim_call("w1", worker_class="gpu")
    assert [actors.broker.run(call).batch, actors.broker.run(call).batch] == [entry, entry]
    assert actors.claim("w1") == Claimed("0-0", False, ())


def test_the_log_tells_what_was_cut_and_what_it_cost(actors: Actors) -> None:
    first, second = cut_for(actors, "gpu", "a", "b"), cut_for(actors, "", "c")
    run = BatchRun(first, "gpu", "w1", 2, 7, 13.25)
    actors.client.xadd("hr:{test}:batchlog", run.fields())
    actors.client.xadd("hr:{test}:batchlog", {"kind": "of a later version", "batch": first})
    actors.client.xadd("hr:{test}:batchlog", {"kind": "cut", "batch": "yesterday", "class": "", "rows": 1, "tokens": 1,
                                              "longest": 1, "ms": 1})  # fmt: skip
    assert actors.broker.costs.batch_log(10) == [
        BatchRecord(second, "", 1, 8, 4, 12.5),
        BatchRecord(first, "gpu", 2, 8, 4, 12.5, run),
    ]
    assert [record.batch for record in actors.broker.costs.batch_log(1)] == [second]


def test_the_log_does_not_grow_without_bound(actors: Actors) -> None:
    actors.limit(batch_log_entries=10, max_backlog_batches=1_000)
    for index in range(250):  # trimming is by whole nodes of a hundred entries
        cut_for(actors, "gpu", f"r{index}")
    assert actors.client.xlen("hr:{test}:batchlog") <= 110


def test_a_class_is_forgotten_with_its_costs_long_after_its_last_worker(actors: Actors) -> None:
    beat(actors, "slow", "cpu"), beat(actors, "fast", "gpu")
    actors.client.hset("hr:{test}:cost", mapping={"cpu": b"1", "gpu": b"2"})
    actors.client.zadd("hr:{test}:classes", {"gpu": actors.broker.now_ms() - 5_000})
    assert actors.broker.costs.living() == ["cpu"]
    assert actors.broker.costs.forget(60_000) == []
    assert actors.broker.costs.forget(4_000) == ["gpu"]
    assert actors.broker.costs.tables() == {"cpu": b"1"}
    assert list(actors.broker.costs.classes()) == ["cpu"]


def test_workers_of_a_class_hear_that_they_are_to_measure_again(actors: Actors) -> None:
    assert [beat(actors, "slow", "cpu"), beat(actors, "fast", "gpu")] == [0, 0]
    before = actors.broker.now_ms()
    assert actors.broker.costs.request_measurement("gpu") == ["gpu"]
    assert beat(actors, "slow", "cpu") == 0
    asked = beat(actors, "fast", "gpu")
    assert asked >= before
    assert actors.broker.costs.request_measurement() == ["cpu", "gpu"]
    assert beat(actors, "slow", "cpu") >= asked
    assert actors.client.pttl("hr:{test}:measure") > 0


def test_to_ask_a_class_that_does_not_live_is_an_error_that_names_those_that_do(actors: Actors) -> None:
    with pytest.raises(ConfigurationError, match="no worker lives"):
        actors.broker.costs.request_measurement()
    beat(actors, "slow", "cpu")
    with pytest.raises(ConfigurationError, match=r"'gpu'.*cpu"):
        actors.broker.costs.request_measurement("gpu")


def test_a_class_whose_name_is_no_text_harms_no_other(actors: Actors) -> None:
    # Previously a scheduler that read such a name ended, and every one that was started in its place.
    beat(actors, "slow", "cpu")
    broker = actors.broker
    actors.client.hset(broker.keys.cost, b"\xff", b"x")
    actors.client.zadd(broker.keys.classes, {b"\xff": 1})
    actors.client.xadd(broker.keys.batches, {"class": b"\xff", "ids": "x"})
    assert set(broker.costs.tables()) == {"\ufffd"}
    assert broker.costs.living() == ["cpu"]
    assert broker.waiting_batches().total() == 1
    assert broker.costs.forget(60_000) == ["\ufffd"]
    assert broker.costs.tables() == {}
