from tests.unit.contract.actors import Actors, Holding


def test_a_hand_back_costs_nothing(actors: Actors) -> None:
    (held,) = actors.running("a", cost_tokens=33)
    score = actors.broker.request_fields("a")["score"]
    actors.wrote(held, "yield")
    fields = actors.broker.request_fields("a")
    assert (fields["state"], fields["strikes"], fields["score"], fields["at"]) == ("queued", "0", score, ":1:0")
    assert actors.broker.load()["queued_tokens"] == 33
    assert actors.emit(held.emit("yield")).refused == {"a"}


def test_a_hand_back_keeps_the_strikes_of_a_row_without_a_token(actors: Actors) -> None:
    (held,) = actors.running("a")
    actors.emit(held.emit("lost"))
    actors.dispatch("a")
    actors.emit(Holding(actors.claim("w2").rows[0], "w2").emit("yield"))
    assert actors.broker.request_fields("a")["strikes"] == "1"


def test_a_hand_back_rings_for_the_scheduler(actors: Actors) -> None:
    (held,) = actors.running("a")
    wake = actors.broker.wait_for_requests([], "0-0", 1)
    actors.wrote(held, "yield")
    assert actors.broker.wait_for_requests([], wake, 1) != wake


def test_a_lost_row_has_a_strike_unless_it_has_a_token_since_its_claim(actors: Actors) -> None:
    for request_id, num_tokens, strikes in (("a", 0, "1"), ("b", 2, "0")):
        (held,) = actors.running(request_id)
        if num_tokens:
            actors.wrote(held, "chunk", num_tokens)
        actors.wrote(held, "lost")
        assert actors.broker.request_fields(request_id)["strikes"] == strikes


def test_tokens_of_an_earlier_claim_do_not_excuse_a_later_one(actors: Actors) -> None:
    (held,) = actors.running("a")
    actors.wrote(held, "chunk", 2)
    actors.wrote(held, "yield")
    actors.dispatch("a")
    actors.emit(Holding(actors.claim("w1").rows[0], "w1").emit("lost"))
    assert actors.broker.request_fields("a")["strikes"] == "1"


def test_progress_forgives_every_strike(actors: Actors) -> None:
    (held,) = actors.running("a")
    actors.emit(held.emit("lost"))
    actors.dispatch("a")
    held = Holding(actors.claim("w1").rows[0], "w1")
    actors.wrote(held, "chunk", 1)
    actors.wrote(held, "yield")
    assert actors.broker.request_fields("a")["strikes"] == "0"


def test_a_request_that_kills_its_workers_is_buried_with_its_job_and_says_so(actors: Actors) -> None:
    actors.queued("a")
    for worker in ("w1", "w2", "w3"):
        actors.dispatch("a")
        actors.emit(Holding(actors.claim(worker).rows[0], worker).emit("lost"))
    (entry,) = actors.broker.dead_requests(10)
    assert entry.fields == {b"v": b"1", b"id": b"a", b"why": b"lost 3 workers without a token", b"job": b"job of a"}
    done = actors.last("a").done
    assert done is not None
    assert done.reason == "error"
    assert done.error is not None
    assert (done.error.code, done.error.message) == ("poison", "given up: 3 workers died of it without a token")
    assert actors.broker.drop_dead([entry.id]) == 1


def test_a_row_handed_back_past_its_deadline_expires(actors: Actors) -> None:
    (held,) = actors.running("a")
    actors.client.hset("hr:{test}:request:a", "deadline", 1)
    actors.wrote(held, "yield")
    done = actors.last("a").done
    assert done is not None
    assert done.reason == "expired"
