"""A request for several results: children that are requests of their own, and a parent that says where and when."""

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.contract.actors import NORMAL, Actors, Holding

from headrace.keys import RequestStream
from headrace.moves import MAX_ADMIT_ENTRIES, AdmitCall, EmitCall, admit_parts
from headrace.wire import Chunk, Echo, Encoding, Reason, Usage


def reason(actors: Actors, request_id: str) -> str:
    done = actors.last(request_id).done
    assert done is not None
    return done.reason


def states(actors: Actors, *request_ids: str) -> list[str]:
    return [actors.state(request_id) for request_id in request_ids]


def _running(actors: Actors, request_id: str, **given: Any) -> list[Holding]:
    """Bring a request's two children to a worker."""
    actors.queued(request_id, num_results=2, **given)
    actors.dispatch(f"{request_id}/0", f"{request_id}/1")
    return [Holding(row, "w1") for row in actors.claim("w1").rows]


def test_children_are_queued_priced_and_scored_as_requests_of_their_own(actors: Actors) -> None:
    actors.limit(lane_offset_tokens={"normal": 0})
    actors.queued("p", num_results=3, cost_tokens=10, deadline_ms=0, reply_to="r")
    assert [r.request_id for r in actors.broker.window(10).requests] == ["p/0", "p/1", "p/2"]
    assert [r.cost_tokens for r in actors.broker.window(10).requests] == [10] * 3
    scores = [actors.client.zscore("hr:{test}:ready", f"p/{index}") for index in range(3)]
    assert scores == [0, 10, 20]
    load = actors.broker.load()
    assert (load["queued"], load["queued_tokens"]) == (3, 30)
    fields = actors.broker.request_fields("p/1")
    assert (fields["reply"], fields["ttl"], fields["prompt"], fields["lane"]) == ("r", "60000", "4", "normal")


@pytest.mark.parametrize("encoding", ["json", "mp"])
@pytest.mark.parametrize("num_results", [2, 20, 128])
def test_the_parents_stream_begins_with_the_names_of_its_children(
    actors: Actors, encoding: Encoding, num_results: int
) -> None:
    actors.client.xadd("hr:{test}:requests", {"id": "p", encoding: "?"})
    channel = actors.client.pubsub()
    channel.subscribe("hr:{test}:out:p")
    actors.admit(num_results=num_results, reply_to="r")
    names = tuple(f"p/{index}" for index in range(num_results))
    expected = Chunk(0, 0, (), "", children=names)
    assert actors.chunks("p") == {"0-1": expected}
    ((_, stored),) = actors.client.xrange("hr:{test}:out:p")
    assert list(stored) == [encoding.encode()]
    assert actors.client.xlen("hr:{test}:reply:r") == 1
    received = [channel.get_message(timeout=5) for _ in range(2)]
    assert Chunk.decode(received[1]["data"]) == expected
    channel.close()
    actors.cancel("p")


def test_an_admission_of_several_results_sent_twice_counts_once(actors: Actors) -> None:
    actors.xadd("p")
    call = AdmitCall(NORMAL, actors.judged(num_results=2), actors.settings)
    assert [actors.broker.run(call), actors.broker.run(call)] == [["queued"], ["gone"]]
    actors.xadd("p")
    assert actors.admit(num_results=2) == ["duplicate"]
    assert actors.broker.load()["queued"] == 2


def test_children_are_claimed_with_their_parents_job(actors: Actors) -> None:
    actors.queued("p", num_results=2)
    actors.dispatch("p/0", "p/1")
    assert [(row.request_id, row.job) for row in actors.claim("w1").rows] == [
        ("p/0", b"job of p"),
        ("p/1", b"job of p"),
    ]


def test_the_parent_ends_with_its_last_child_and_counts_what_all_wrote(actors: Actors) -> None:
    (a, b) = _running(actors, "p", reply_to="r")
    actors.wrote(a, "chunk", 2), actors.wrote(b, "chunk", 3)
    actors.wrote(b, "stop", 1)
    assert states(actors, "p", "p/0", "p/1") == ["forked", "running", "done"]
    assert actors.client.pttl("hr:{test}:out:p/1") == -1, "a child's result waits for its brothers"
    call = EmitCall([a.emit("length", 1)], actors.settings)
    actors.broker.run(call)
    assert actors.broker.run(call).refused == {"p/0"}
    assert states(actors, "p", "p/0", "p/1") == ["done"] * 3
    assert list(actors.chunks("p")) == ["0-1", "0-2"]
    last = actors.last("p")
    assert last.done is not None
    assert (last.done.reason, last.done.usage) == ("length", Usage(4, 7))
    mail = [name.decode() for _, fields in actors.client.xrange("hr:{test}:reply:r") for name in fields]
    assert mail[-2:] == ["p/0", "p"], "the last child's end comes before its parent's"
    for request_id in ("p", "p/0", "p/1"):
        assert 0 < actors.client.pttl(f"hr:{{test}}:request:{request_id}") <= 60_000
        assert 0 < actors.client.pttl(f"hr:{{test}}:out:{request_id}") <= 60_000
    assert not actors.client.exists("hr:{test}:job:p")


def test_children_that_end_in_one_flush_end_their_parent_once(actors: Actors) -> None:
    rows = _running(actors, "p")
    assert actors.emit(*(row.emit("stop", 2) for row in rows)).refused == frozenset()
    assert list(actors.chunks("p")) == ["0-1", "0-2"]
    assert reason(actors, "p") == "stop"


@pytest.mark.parametrize(
    ("ends", "worst"),
    [(("stop", "stop"), "stop"), (("length", "stop"), "length"), (("expired", "length"), "expired"),
     (("stop", "error"), "error"), (("error", "expired"), "error")],
)  # fmt: skip
def test_the_parent_tells_the_worst_of_its_childrens_reasons(
    actors: Actors, ends: tuple[Reason, Reason], worst: str
) -> None:
    for row, end in zip(_running(actors, "p"), ends, strict=True):
        actors.wrote(row, end, 1)  # type: ignore[arg-type]
    assert reason(actors, "p") == worst
    done = actors.last("p").done
    assert done is not None
    assert (done.error is not None) == (worst == "error")


def test_cancelling_the_parent_ends_every_child_wherever_it_is(actors: Actors) -> None:
    actors.queued("p", num_results=4)
    actors.dispatch("p/0", "p/1")
    first, _ = actors.claim("w1").rows
    actors.dispatch("p/2")
    holding = Holding(first, "w1")
    actors.wrote(holding, "chunk", 2)
    assert actors.cancel("p") == "forked"
    assert states(actors, *(f"p/{index}" for index in range(4)), "p") == ["done"] * 5
    assert [reason(actors, f"p/{index}") for index in range(4)] == ["cancelled"] * 4
    done = actors.last("p").done
    assert done is not None
    assert (done.reason, done.usage.completion_tokens) == ("cancelled", 2)
    assert actors.emit(holding.emit("chunk", 1)).refused == {"p/0"}
    assert actors.cancel("p") == "done"
    load = actors.broker.load()
    assert not any((load["queued"], load["queued_tokens"], load["running"], load["running_tokens"]))


def test_a_cancellation_by_entry_ends_every_child_and_leaves_room_within_the_same_call(actors: Actors) -> None:
    actors.limit(max_queued_requests=2)
    actors.queued("p", num_results=2)
    actors.xadd_cancel("p"), actors.xadd("q"), actors.xadd("r"), actors.xadd("s")
    assert actors.admit() == ["cancelled", "queued", "queued", "overloaded"]
    assert reason(actors, "p") == "cancelled"


def test_one_child_is_cancelled_alone(actors: Actors) -> None:
    (_, b) = _running(actors, "p")
    assert actors.cancel("p/0") == "running"
    actors.wrote(b, "stop", 1)
    assert (reason(actors, "p/0"), reason(actors, "p/1"), reason(actors, "p")) == ("cancelled", "stop", "cancelled")


def test_a_child_that_was_cancelled_before_it_came_never_runs(actors: Actors) -> None:
    assert actors.cancel("p/1") == "unknown"
    actors.queued("p", num_results=2)
    assert states(actors, "p/0", "p/1", "p") == ["queued", "done", "forked"]
    actors.cancel("p/0")
    assert actors.state("p") == "done"


def test_a_parent_that_was_cancelled_before_it_came_has_no_children(actors: Actors) -> None:
    actors.cancel("p")
    actors.xadd("p")
    assert actors.admit(num_results=2) == ["cancelled"]
    assert actors.state("p/0") == ""
    assert list(actors.chunks("p")) == ["0-2"]


def test_a_submission_pays_for_all_of_its_results(actors: Actors) -> None:
    actors.submit("p", cost=25)
    actors.limit(max_queued_requests=1)
    assert actors.admit(num_results=3, cost_tokens=10) == ["queued"]
    load = actors.broker.load()
    assert (load["queued"], load["queued_tokens"]) == (3, 30)


def test_a_backlog_without_room_for_all_results_refuses_all(actors: Actors) -> None:
    actors.limit(max_queued_requests=3)
    actors.xadd("p"), actors.xadd("q")
    assert actors.admit(num_results=2) == ["queued", "overloaded"]
    assert actors.state("q/0") == ""


def test_deadlines_are_the_childrens_and_the_last_one_ends_the_parent(actors: Actors) -> None:
    actors.queued("p", num_results=2, deadline_ms=600_000)
    for child in ("p/0", "p/1"):
        actors.client.hset(f"hr:{{test}}:request:{child}", "deadline", 1)
    actors.make_due("p/0", "p/1", "p")
    assert actors.reap().num_expired == 2
    assert [reason(actors, i) for i in ("p/0", "p/1", "p")] == ["expired"] * 3


def test_a_parent_that_reap_looks_at_stays(actors: Actors) -> None:
    actors.queued("p", num_results=2)
    actors.make_due("p")
    actors.reap()
    assert (actors.state("p"), actors.due("p")) == ("forked", float("inf"))


def test_a_child_that_kills_its_workers_is_buried_with_its_job_and_its_brother_lives(actors: Actors) -> None:
    actors.limit(max_strikes=1)
    (a, b) = _running(actors, "p")
    actors.wrote(b, "chunk", 1)
    actors.emit(a.emit("lost"))
    ((_, dead),) = actors.client.xrange("hr:{test}:dead")
    assert (dead[b"id"], dead[b"job"]) == (b"p/0", b"job of p")
    assert states(actors, "p/0", "p/1", "p") == ["done", "running", "forked"]
    actors.wrote(b, "stop", 1)
    done = actors.last("p").done
    assert done is not None
    assert done.error is not None
    assert done.error.code == "child"


def test_a_tenants_children_are_its_own(actors: Actors) -> None:
    stream = RequestStream("bulk", "t1")
    actors.xadd("t1:p", stream)
    assert actors.admit(stream, num_results=2) == ["queued"]
    assert actors.broker.request_fields("t1:p/1")["tenant"] == "t1"


def test_an_id_is_free_again_when_its_family_has_expired(actors: Actors) -> None:
    actors.queued("p", num_results=2)
    actors.cancel("p")
    actors.client.delete("hr:{test}:request:p", "hr:{test}:out:p")
    actors.queued("p", num_results=2)
    assert states(actors, "p/0", "p/1") == ["queued", "queued"]
    assert actors.broker.request_fields("p/0").get("reason") is None
    assert actors.chunks("p/0") == {}


@pytest.mark.parametrize("encoding", ["json", "mp"])
def test_an_echo_heads_every_result_and_stays_there_when_a_worker_is_lost(actors: Actors, encoding: Encoding) -> None:
    echo = Chunk(0, 0, (), "", echo=Echo((7, 8), "p\u00e9"))
    for request_id in ("a", "p"):
        actors.client.xadd("hr:{test}:requests", {"id": request_id, encoding: "?"})
    first, second = actors.judged(echo=echo.encode(encoding), reply_to="r")
    call = AdmitCall(NORMAL, [first, replace(second, num_results=2)], actors.settings)
    actors.broker.run(call), actors.broker.run(call)
    assert actors.chunks("a") == actors.chunks("p/0") == actors.chunks("p/1") == {"0-1": echo}
    actors.dispatch("a")
    (held,) = (Holding(row, "w1") for row in actors.claim("w1").rows)
    actors.wrote(held, "chunk", 2)
    actors.emit(held.emit("lost"))
    actors.dispatch("a")
    (held,) = (Holding(row, "w1") for row in actors.claim("w1").rows)
    actors.wrote(held, "stop", 1)
    assert list(actors.chunks("a")) == ["0-1", "2-0", "3-0"]
    ((_, first_mail), *_) = actors.client.xrange("hr:{test}:reply:r")
    assert {name: Chunk.decode(data) for name, data in first_mail.items()} == {b"a": echo}
    actors.cancel("p")


def test_a_call_of_admit_is_cut_by_results_and_not_by_entries(actors: Actors) -> None:
    for request_id in "abcd":
        actors.xadd(request_id)
    judged = actors.judged(num_results=MAX_ADMIT_ENTRIES // 2)
    assert [len(part) for part in admit_parts(judged)] == [2, 2]
    assert [len(part) for part in admit_parts(actors.judged(num_results=2 * MAX_ADMIT_ENTRIES))] == [1] * 4
    assert [len(part) for part in admit_parts(actors.judged())] == [4]
    assert list(admit_parts([])) == []


def test_a_pointer_is_plain_json_for_people(actors: Actors) -> None:
    actors.queued("p", num_results=2)
    ((_, fields),) = actors.client.xrange("hr:{test}:out:p")
    assert json.loads(fields[b"json"])["children"] == ["p/0", "p/1"]
