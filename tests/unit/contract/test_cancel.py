from tests.unit.contract.actors import Actors

from headrace.keys import RequestStream


def reason(actors: Actors, request_id: str) -> str:
    done = actors.last(request_id).done
    assert done is not None
    return done.reason


def test_a_submitted_request_is_cancelled_and_its_entry_goes_with_it(actors: Actors) -> None:
    # Previously the entry stayed, and was admitted as a new request if the result expired before the stream was read.
    actors.submit("a", ttl_ms=60_000)
    assert actors.cancel("a") == "submitted"
    assert reason(actors, "a") == "cancelled"
    actors.client.delete("hr:{test}:request:a", "hr:{test}:out:a")
    assert actors.admit() == []
    assert actors.state("a") == ""


def test_the_entry_of_a_cancelled_request_goes_whichever_stream_it_is_in(actors: Actors) -> None:
    actors.broker.serve_tenants([RequestStream("bulk", "t")])
    actors.submit("t:a", stream=RequestStream("bulk", "t"))
    actors.submit("t:b", stream=RequestStream("bulk", "t"))
    actors.cancel("t:a")
    assert [a.request_id for a in actors.judged(RequestStream("bulk", "t"))] == ["t:b"]


def test_a_queued_request_is_cancelled(actors: Actors) -> None:
    actors.queued("a", "b")
    assert actors.cancel("a") == "queued"
    assert reason(actors, "a") == "cancelled"
    assert actors.dispatch("a", "b").left == ("a",)


def test_a_batched_request_is_cancelled_and_never_runs(actors: Actors) -> None:
    actors.dispatched("a", "b")
    assert actors.cancel("a") == "batched"
    assert [row.request_id for row in actors.claim("w1").rows] == ["b"]


def test_a_running_request_is_cancelled_at_once_and_its_worker_hears_of_it(actors: Actors) -> None:
    (held,) = actors.running("a", reply_to="r")
    actors.wrote(held, "chunk", 3)
    assert actors.cancel("a") == "running"
    assert [*actors.chunks("a")] == ["3-0", "3-2"]
    last = actors.last("a")
    assert (last.i, last.o, last.ids, last.text) == (3, 9, (), "")
    assert last.done is not None
    assert (last.done.usage.prompt_tokens, last.done.usage.completion_tokens) == (4, 3)
    assert actors.client.xlen("hr:{test}:reply:r") == 2
    for late in (held.emit("chunk", 1), held.emit("stop", 1), held.emit("renew"), held.emit("yield")):
        assert actors.emit(late).refused == {"a"}
    assert len(actors.chunks("a")) == 2


def test_a_cancellation_sent_twice_is_done_once(actors: Actors) -> None:
    actors.queued("a")
    assert [actors.cancel("a"), actors.cancel("a")] == ["queued", "done"]
    assert len(actors.chunks("a")) == 1


def test_a_finished_request_stays_as_it_is(actors: Actors) -> None:
    (held,) = actors.running("a")
    actors.wrote(held, "stop", 1)
    assert actors.cancel("a") == "done"
    assert reason(actors, "a") == "stop"


def test_an_unknown_request_leaves_a_tombstone_that_expires(actors: Actors) -> None:
    actors.limit(tombstone_ttl_ms=50_000)
    assert [actors.cancel("a"), actors.cancel("a")] == ["unknown", "tomb"]
    assert 40_000 < actors.client.pttl("hr:{test}:request:a") <= 50_000
