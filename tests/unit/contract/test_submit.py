from tests.unit.contract.actors import Actors


def test_a_submission_enters_its_stream_and_counts(actors: Actors) -> None:
    verdict = actors.submit("a", cost=7, body=b'{"id":"a"}')
    assert verdict.verdict == "ok"
    entries = actors.client.xrange("hr:{test}:requests")
    assert entries == [(verdict.detail.encode(), {b"id": b"a", b"json": b'{"id":"a"}'})]
    assert actors.state("a") == "submitted"
    load = actors.broker.load()
    assert (load["queued"], load["queued_tokens"]) == (1, 7)


def test_a_repeated_submission_is_known_and_changes_nothing_that_counts(actors: Actors) -> None:
    actors.submit("a")
    assert (actors.submit("a").verdict, actors.submit("a").detail) == ("known", "submitted")
    assert actors.client.xlen("hr:{test}:requests") == 1
    assert actors.broker.load()["queued"] == 1


def test_a_repeated_submission_is_known_in_every_later_state(actors: Actors) -> None:
    (held,) = actors.running("a")
    assert actors.submit("a").detail == "running"
    actors.wrote(held, "stop", 1)
    assert actors.submit("a").detail == "done"
    assert actors.last("a").num_tokens_after == 1


def test_a_backlog_of_too_many_requests_refuses_and_leaves_no_trace(actors: Actors) -> None:
    actors.limit(max_queued_requests=2)
    actors.submit("a"), actors.submit("b")
    assert actors.submit("c").verdict == "overloaded"
    assert actors.state("c") == ""
    assert actors.client.xlen("hr:{test}:requests") == 2


def test_a_backlog_of_too_many_tokens_refuses_and_says_how_many(actors: Actors) -> None:
    actors.limit(max_queued_tokens=20)
    assert actors.submit("a", cost=15).verdict == "ok"
    refused = actors.submit("b", cost=6)
    assert (refused.verdict, refused.detail) == ("overloaded", "15")
    assert actors.submit("c", cost=5).verdict == "ok"


def test_running_requests_do_not_count_as_backlog(actors: Actors) -> None:
    actors.running("a")
    actors.limit(max_queued_requests=1)
    assert actors.submit("b").verdict == "ok"


def test_a_submission_whose_cancellation_came_first_is_cancelled(actors: Actors) -> None:
    assert actors.cancel("a") == "unknown"
    assert actors.submit("a", encoding="mp", reply_to="r").verdict == "cancelled"
    done = actors.last("a").done
    assert done is not None
    assert done.reason == "cancelled"
    assert actors.client.xlen("hr:{test}:requests") == 0
    assert actors.client.xlen("hr:{test}:reply:r") == 1
    assert actors.submit("a").verdict == "known"


def test_a_submission_that_costs_nothing_can_end(actors: Actors) -> None:
    # Previously "-0" was subtracted from the totals, which the server refuses half-way through the move.
    actors.submit("a", cost=0)
    assert actors.cancel("a") == "submitted"
    assert actors.last("a").done is not None


def test_an_id_comes_back_as_a_new_request_once_its_result_has_expired(actors: Actors) -> None:
    (held,) = actors.running("a")
    actors.wrote(held, "stop", 3)
    actors.client.delete("hr:{test}:request:a")  # its stream, by a clock that is off, outlives it
    actors.submit("a")
    assert actors.chunks("a") == {}
    actors.cancel("a")
    assert [*actors.chunks("a")] == ["0-2"]
