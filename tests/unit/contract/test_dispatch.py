import time
from dataclasses import replace

from tests.unit.contract.actors import Actors

from headrace.moves import DispatchCall


def batches(actors: Actors) -> list[tuple[str, str]]:
    """(ids, solo) of each."""
    return [(f[b"ids"].decode(), f[b"solo"].decode()) for _, f in actors.client.xrange("hr:{test}:batches")]


def strike(actors: Actors, *request_ids: str) -> None:
    for held in actors.running(*request_ids, worker="killed"):
        actors.emit(held.emit("lost"))


def test_ready_requests_become_one_batch_in_the_order_asked_for(actors: Actors) -> None:
    actors.queued("a", "b", "c")
    batch = actors.dispatch("c", "a")
    assert (batch.full, batch.left) == (False, ())
    assert batches(actors) == [("c a", "0")]
    assert [actors.state(i) for i in "abc"] == ["batched", "queued", "batched"]


def test_a_full_backlog_changes_nothing(actors: Actors) -> None:
    actors.limit(max_backlog_batches=1)
    actors.queued("a", "b")
    actors.dispatch("a")
    full = actors.dispatch("b")
    assert (full.entry, full.full, full.left) == ("", True, ("b",))
    assert actors.state("b") == "queued"


def test_a_dispatch_sent_twice_makes_one_batch(actors: Actors) -> None:
    actors.queued("a", "b")
    actors.dispatch("a", "b")
    again = actors.dispatch("a", "b")
    assert (again.entry, again.full, again.left) == ("", False, ("a", "b"))
    assert len(batches(actors)) == 1


def test_an_id_asked_for_twice_is_in_the_batch_once(actors: Actors) -> None:
    # Previously it was claimed twice too, and subtracted twice from the totals.
    actors.queued("a", "b")
    assert actors.dispatch("a", "b", "a").left == ()
    assert batches(actors) == [("a b", "0")]
    assert [row.request_id for row in actors.claim("w1").rows] == ["a", "b"]


def test_ids_that_are_not_ready_stay_behind(actors: Actors) -> None:
    actors.queued("a", "b")
    actors.cancel("b")
    actors.submit("c")
    assert actors.dispatch("a", "b", "c", "nobody").left == ("b", "c", "nobody")


def test_nothing_ready_makes_no_batch(actors: Actors) -> None:
    assert actors.dispatch("nobody").entry == ""
    assert actors.dispatch().entry == ""
    assert batches(actors) == []


def test_a_suspect_travels_alone_and_its_batch_says_so(actors: Actors) -> None:
    strike(actors, "a")
    actors.queued("b")
    company = actors.dispatch("a", "b")
    assert company.left == ("a",)
    actors.dispatch("a")
    assert batches(actors) == [("b", "0"), ("a", "1")]


def test_virtual_time_moves_to_the_latest_start_and_never_back(actors: Actors) -> None:
    actors.queued("a", "b", "c", cost_tokens=100)  # starts 0, 100, 200
    assert actors.client.hget("hr:{test}:load", "v") is None
    actors.dispatch("c")
    assert actors.client.hget("hr:{test}:load", "v") == b"200"
    actors.dispatch("a")
    assert actors.client.hget("hr:{test}:load", "v") == b"200"


def test_a_batched_request_is_due_at_its_deadline_if_that_comes_first(actors: Actors) -> None:
    actors.queued("a", deadline_ms=5_000)
    actors.queued("b")
    now = actors.broker.now_ms()
    actors.dispatch("a", "b")
    a, b = actors.due("a"), actors.due("b")
    assert a is not None
    assert b is not None
    assert now < a <= now + 5_000 < b <= now + 61_000


def test_a_whole_window_fits_one_batch(actors: Actors) -> None:
    ids = [f"r{i}" for i in range(256)]
    for begin in range(0, 256, 64):
        actors.queued(*ids[begin : begin + 64])
    assert actors.dispatch(*ids).left == ()
    assert len(actors.claim("w1", free_rows=256, max_rows=256).rows) == 256


def test_a_request_whose_deadline_is_over_ends_and_is_in_no_batch(actors: Actors) -> None:
    actors.queued("late", deadline_ms=60)
    actors.queued("sound", deadline_ms=60_000)
    deadline_ms = int(actors.broker.request_fields("late")["deadline"])
    while actors.broker.now_ms() < deadline_ms:
        time.sleep(0.005)
    assert actors.dispatch("late", "sound").left == ("late",)
    assert batches(actors) == [("sound", "0")]
    done = actors.last("late").done
    assert done is not None
    assert done.reason == "expired"


def test_hopeless_requests_end_even_where_there_is_no_room(actors: Actors) -> None:
    actors.limit(max_backlog_batches=1)
    actors.queued("a", "b", "no deadline")
    actors.queued("hopeless", "another", deadline_ms=60_000)
    call = DispatchCall(["a"], actors.settings, hopeless=["hopeless", "no deadline", "nobody"])
    assert actors.broker.run(call).left == ("hopeless", "no deadline", "nobody")
    assert batches(actors) == [("a", "0")]
    full = actors.broker.run(DispatchCall(["b"], actors.settings, hopeless=["another"]))
    assert full.full
    states = {i: actors.state(i) for i in ("a", "b", "no deadline", "hopeless", "another")}
    assert states == {"a": "batched", "b": "queued", "no deadline": "queued", "hopeless": "done", "another": "done"}
    assert actors.broker.run(call).left == ("a",), "sent twice it changes nothing more"


def test_a_window_tells_what_a_scheduler_must_know(actors: Actors) -> None:
    strike(actors, "struck")
    before_ms = actors.broker.now_ms()
    actors.running("running", cost_tokens=33)
    actors.dispatched("waiting", "ended", cost_tokens=20)
    actors.cancel("ended")
    actors.queued("a", deadline_ms=5_000, cost_tokens=12, prompt_tokens=7)
    window = actors.broker.window(10)
    struck, a = window.requests
    assert (window.num_ready, window.num_running, window.running_tokens) == (2, 1, 33)
    assert (window.num_waiting, window.waiting_tokens) == (1, 20)
    uncounted = actors.broker.window(10, counts_waiting=False)
    assert replace(uncounted, now_ms=0) == replace(window, now_ms=0, num_waiting=0, waiting_tokens=0)
    assert before_ms <= a.submit_ms <= window.now_ms <= actors.broker.now_ms()
    assert (a.request_id, a.prompt_tokens, a.cost_tokens, a.num_tokens, a.strikes) == ("a", 7, 12, 0, 0)
    assert (struck.request_id, struck.strikes, struck.deadline_ms) == ("struck", 1, 0)
    assert a.deadline_ms == int(actors.broker.request_fields("a")["deadline"])
    assert a.score == actors.client.zscore("hr:{test}:ready", "a") > struck.score
    first = actors.broker.window(1)
    assert ([r.request_id for r in first.requests], first.num_ready) == (["struck"], 2)


def test_a_resumed_request_s_window_counts_what_it_has_written(actors: Actors) -> None:
    (held,) = actors.running("a")
    actors.wrote(held, "chunk", 3)
    actors.emit(held.emit("yield"))
    (request,) = actors.broker.window(1).requests
    assert (request.num_tokens, request.length) == (3, 7)
