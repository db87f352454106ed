import pytest
from tests.unit.contract.actors import Actors, Holding

from headrace.moves import Reaped

QUIET = Reaped(0, 0, 0, 0, False)


def long_away(actors: Actors, ms: int = 60_000) -> None:
    """As if nobody had reaped for so long; negative: as if the clock had been turned back."""
    actors.client.hset("hr:{test}:load", "reaped_at", actors.broker.now_ms() - ms)


def reason(actors: Actors, request_id: str) -> str:
    done = actors.last(request_id).done
    assert done is not None
    return done.reason


def test_nothing_due_is_nothing_done(actors: Actors) -> None:
    actors.running("a")
    actors.queued("b")
    assert actors.reap() == QUIET


def test_a_lost_lease_gives_the_request_back_with_a_strike(actors: Actors) -> None:
    actors.running("a")
    actors.make_due("a")
    assert actors.reap() == Reaped(1, 1, 0, 0, False)
    fields = actors.broker.request_fields("a")
    assert (fields["state"], fields["strikes"], fields["at"]) == ("queued", "1", ":1:0")
    assert actors.reap() == QUIET


def test_a_lease_lost_after_progress_is_no_strike_and_forgives_those_before(actors: Actors) -> None:
    actors.running("a")
    actors.make_due("a")
    actors.reap()
    actors.dispatch("a")
    actors.wrote(Holding(actors.claim("w2").rows[0], "w2"), "chunk", 1)
    actors.make_due("a")
    assert actors.reap().num_requeued == 1
    assert actors.broker.request_fields("a")["strikes"] == "0"


def test_poison_is_buried_and_its_neighbours_are_not(actors: Actors) -> None:
    actors.queued("poison", "b")
    actors.dispatch("poison", "b")
    for worker in ("w1", "w2", "w3"):
        rows = [Holding(row, worker) for row in actors.claim(worker).rows]
        actors.make_due(*[row.claimed.request_id for row in rows])
        actors.reap()
        actors.dispatch("poison")
    assert actors.state("poison") == "done"
    assert reason(actors, "poison") == "error"
    assert actors.broker.request_fields("b")["strikes"] == "1"
    assert len(actors.broker.dead_requests(10)) == 1


def test_a_deadline_ends_a_request_wherever_it_waits(actors: Actors) -> None:
    actors.queued("queued", deadline_ms=60_000)
    actors.dispatched("batched", deadline_ms=60_000)
    for request_id in ("queued", "batched"):
        actors.client.hset(f"hr:{{test}}:request:{request_id}", "deadline", 1)
    actors.make_due("queued", "batched")
    assert actors.reap() == Reaped(2, 0, 2, 0, False)
    assert {reason(actors, i) for i in ("queued", "batched")} == {"expired"}


def test_a_queued_request_is_due_at_its_deadline(actors: Actors) -> None:
    entry = actors.xadd("a")
    actors.admit(deadline_ms=5_000)
    assert actors.due("a") == int(entry.partition("-")[0]) + 5_000


def test_a_batched_request_whose_batch_is_gone_is_queued_again_without_a_strike(actors: Actors) -> None:
    entry = actors.dispatched("a", "b")
    actors.client.xdel("hr:{test}:batches", entry)
    actors.make_due("a", "b")
    assert actors.reap() == Reaped(2, 2, 0, 0, False)
    assert actors.broker.request_fields("a")["strikes"] == "0"
    assert actors.dispatch("a", "b").left == ()


def test_a_batch_that_nobody_takes_is_taken_back_so_that_it_can_be_cut_anew(actors: Actors) -> None:
    # Previously two batches made for a large worker, since lost, filled the backlog for ever.
    actors.limit(max_backlog_batches=1)
    actors.dispatched("a", "b")
    assert actors.claim("small", max_rows=1).rows == ()
    actors.make_due("a", "b")
    assert actors.reap(limit=1) == Reaped(1, 1, 0, 0, False)
    assert actors.reap(limit=1) == Reaped(1, 1, 0, 0, False)
    assert actors.broker.request_fields("a")["strikes"] == "0"
    actors.dispatch("a")
    assert [row.request_id for row in actors.claim("small", max_rows=1).rows] == ["a"]


def test_a_submitted_request_waits_for_the_scheduler_as_long_as_its_entry_is_there(actors: Actors) -> None:
    actors.submit("a")
    actors.make_due("a")
    now = actors.broker.now_ms()
    assert actors.reap() == Reaped(1, 0, 0, 0, False)
    assert actors.state("a") == "submitted"
    assert (actors.due("a") or 0) >= now + 60_000


def test_a_submitted_request_whose_entry_is_gone_ends_as_lost(actors: Actors) -> None:
    entry = actors.submit("a").detail
    actors.client.xdel("hr:{test}:requests", entry)
    actors.make_due("a")
    assert actors.reap() == Reaped(1, 0, 0, 1, False)
    done = actors.last("a").done
    assert done is not None
    assert done.error is not None
    assert done.error.code == "lost"


@pytest.mark.parametrize("gap_ms", [60_000, 400, -60_000])
def test_after_a_gap_no_worker_loses_its_lease_for_one_lease(actors: Actors, gap_ms: int) -> None:
    (held,) = actors.running("a")
    actors.client.zadd("hr:{test}:due", {"a": 1})
    long_away(actors, gap_ms)
    assert actors.reap() == Reaped(1, 0, 0, 0, True)
    assert actors.reap() == Reaped(0, 0, 0, 0, True)
    assert actors.state("a") == "running"
    actors.wrote(held, "chunk", 1)


def test_the_first_reap_of_a_queue_grants_amnesty(actors: Actors) -> None:
    actors.client.delete("hr:{test}:load")
    assert actors.reap().amnesty
    actors.client.hset("hr:{test}:load", "amnesty_until", actors.broker.now_ms())
    assert not actors.reap().amnesty


def test_a_row_is_spared_once_until_it_is_renewed(actors: Actors) -> None:
    # Previously a reaper that was always late granted amnesty for ever, and a lost worker's rows never came back.
    (held,) = actors.running("a")
    actors.client.zadd("hr:{test}:due", {"a": 1})
    long_away(actors)
    actors.reap()
    spared = actors.due("a") or 0.0
    assert spared % 1 == 0.5
    actors.emit(held.emit("renew"))
    assert (actors.due("a") or 0.0) % 1 == 0
    for verdict in (0, 1):
        actors.client.zadd("hr:{test}:due", {"a": 1.0 + verdict / 2})
        long_away(actors)
        assert actors.reap() == Reaped(1, verdict, 0, 0, True)


def test_amnesty_does_not_stop_a_deadline(actors: Actors) -> None:
    actors.running("a", "b")
    now = actors.broker.now_ms()
    actors.client.hset("hr:{test}:request:a", "deadline", 1)
    actors.client.hset("hr:{test}:request:b", "deadline", now + 300)
    actors.client.zadd("hr:{test}:due", {"a": 1, "b": 1})
    long_away(actors)
    assert actors.reap() == Reaped(2, 0, 1, 0, True)
    assert reason(actors, "a") == "expired"
    assert actors.due("b") == now + 300


def test_amnesty_does_not_keep_a_request_whose_batch_is_gone(actors: Actors) -> None:
    actors.client.xdel("hr:{test}:batches", actors.dispatched("a"))
    actors.client.zadd("hr:{test}:due", {"a": 1})
    long_away(actors)
    assert actors.reap().num_requeued == 1


def test_an_amnesty_that_a_clock_set_back_has_stretched_is_void(actors: Actors) -> None:
    actors.client.hset("hr:{test}:load", "amnesty_until", actors.broker.now_ms() + 10_000_000)
    assert not actors.reap().amnesty


def test_a_round_looks_at_no_more_than_it_is_told_to_and_the_next_goes_on(actors: Actors) -> None:
    actors.running(*"abcd")
    actors.make_due(*"abcd")
    assert [actors.reap(limit=3).num_seen, actors.reap(limit=3).num_seen, actors.reap(limit=3).num_seen] == [3, 1, 0]


def test_what_is_due_without_a_request_is_forgotten(actors: Actors) -> None:
    actors.client.zadd("hr:{test}:due", {"ghost": 1})
    actors.reap()
    assert actors.due("ghost") is None


def test_ids_without_a_request_take_no_places_in_the_window_for_long(actors: Actors) -> None:
    actors.running("runs")
    actors.queued("waits")
    strays = {f"ghost{number}": -1000 + number for number in range(20)} | {"runs": -2000}
    actors.client.zadd("hr:{test}:ready", strays)
    actors.client.set("hr:{test}:request:odd", "oops")
    actors.client.zadd("hr:{test}:ready", {"odd": -3000, b"\xff": -3000})
    assert actors.broker.window(8).requests == ()
    assert sum(actors.reap().num_strays for _ in range(4)) == 23
    assert [request.request_id for request in actors.broker.window(8).requests] == ["waits"]
    assert actors.reap() == QUIET
    assert actors.state("runs") == "running"
    actors.client.delete("hr:{test}:request:odd")


def test_a_stray_that_falls_due_is_queued_again(actors: Actors) -> None:
    actors.running("a")
    actors.client.zadd("hr:{test}:ready", {"a": -1})
    actors.make_due("a")
    assert actors.reap() == Reaped(1, 1, 0, 0, False, 1)
    assert [request.request_id for request in actors.broker.window(8).requests] == ["a"]


def test_of_a_running_request_whose_hash_was_deleted_nothing_stays(actors: Actors) -> None:
    (held,) = actors.running("a")
    actors.emit(held.emit("chunk", 1))
    actors.client.delete("hr:{test}:request:a")
    assert actors.emit(held.emit("renew")).refused == {"a"}
    actors.make_due("a")
    actors.reap()
    assert not actors.client.exists("hr:{test}:job:a")
    assert actors.client.pttl("hr:{test}:out:a") > 0
    assert actors.client.zscore("hr:{test}:due", "a") is None
    load = actors.broker.load()
    assert (load["running"], load["running_tokens"]) == (1, 10), "nobody knows any more what it counted for"
    actors.client.hset("hr:{test}:load", mapping={"running": 0, "running_tokens": 0})


@pytest.mark.parametrize("field", ["prompt", "cost", "at", "strikes", "deadline"])
def test_a_queued_request_whose_hash_was_damaged_is_told_so(actors: Actors, field: str) -> None:
    actors.queued("a", "b")
    kept = actors.client.hget("hr:{test}:request:a", field)
    actors.client.hset("hr:{test}:request:a", field, "nan")
    assert [request.request_id for request in actors.broker.window(8).requests] == ["b"]
    assert actors.reap().num_dead == 1
    done = actors.last("a").done
    assert done is not None
    assert done.error is not None
    assert done.error.code == "lost"
    if field == "cost":
        actors.client.hincrby("hr:{test}:load", "queued_tokens", -int(kept))
