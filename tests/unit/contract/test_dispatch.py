from tests.unit.contract.actors import Actors


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
