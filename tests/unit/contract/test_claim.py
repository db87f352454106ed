from dataclasses import replace

import pytest
from tests.unit.contract.actors import Actors, Holding

from headrace.errors import BrokerUnavailableError
from headrace.moves import Claimed


def ids(claimed: Claimed) -> list[str]:
    return [row.request_id for row in claimed.rows]


def test_a_claim_takes_the_oldest_batch_whole(actors: Actors) -> None:
    first, _ = actors.dispatched("a", "b", reply_to="r"), actors.dispatched("c")
    claimed = actors.claim("w1")
    assert (claimed.last_entry, claimed.solo) == (first, False)
    row = claimed.rows[0]
    assert (row.request_id, row.epoch, row.num_tokens, row.num_chars) == ("a", 1, 0, 0)
    assert (row.job, row.encoding, row.deadline_ms, row.reply_to) == (b"job of a", "json", 0, "r")
    assert ids(claimed) == ["a", "b"]
    assert actors.broker.request_fields("a")["at"] == "w1:1:0"
    load = actors.broker.load()
    assert (load["queued"], load["queued_tokens"], load["running"], load["running_tokens"]) == (1, 10, 2, 20)
    assert load["batches"] == 1


def test_an_empty_queue_answers_with_nothing(actors: Actors) -> None:
    assert actors.claim("w1") == Claimed("0-0", False, ())


def test_the_same_nonce_gives_the_same_answer(actors: Actors) -> None:
    actors.dispatched("a", "b"), actors.dispatched("c")
    call = actors.claim_call("w1")
    first, again = actors.broker.run(call), actors.broker.run(call)
    assert again.rows == first.rows
    assert ids(again) == ["a", "b"]
    assert actors.broker.request_fields("a")["attempts"] == "1"


def test_the_same_nonce_answers_less_what_ended_meanwhile(actors: Actors) -> None:
    actors.dispatched("a", "b")
    call = actors.claim_call("w1")
    actors.broker.run(call)
    actors.cancel("a")
    assert ids(actors.broker.run(call)) == ["b"]


def test_a_repeated_claim_of_a_suspect_says_again_that_it_is_one(actors: Actors) -> None:
    (held,) = actors.running("a")
    actors.emit(held.emit("lost"))
    actors.dispatch("a")
    call = actors.claim_call("w1")
    assert [actors.broker.run(call).solo, actors.broker.run(call).solo] == [True, True]


def test_an_older_nonce_gives_nothing(actors: Actors) -> None:
    actors.dispatched("a"), actors.dispatched("b")
    old = actors.claim_call("w1")
    actors.claim("w1")
    assert actors.broker.run(old).rows == ()
    assert actors.state("b") == "batched"


def test_another_worker_has_nonces_of_its_own(actors: Actors) -> None:
    actors.dispatched("a"), actors.dispatched("b")
    assert ids(actors.claim("w1")) == ["a"]
    assert ids(actors.claim("w2")) == ["b"]


@pytest.mark.parametrize("room", [{"free_rows": 1}, {"free_tokens": 19}])
def test_the_oldest_batch_that_fits_an_empty_worker_waits_for_room_and_is_not_overtaken(
    actors: Actors, room: dict[str, int]
) -> None:
    actors.dispatched("a", "b")
    newest = actors.dispatched("c")
    waits = actors.claim("w1", **room)
    # Previously `last` was the batch that does not fit, and a wait behind it ended at once.
    assert waits == Claimed(newest, False, ())
    assert ids(actors.claim("w1", free_rows=2, free_tokens=20)) == ["a", "b"]


@pytest.mark.parametrize("size", [{"max_rows": 1}, {"max_tokens": 19}])
def test_a_batch_too_large_for_the_empty_worker_is_left_for_a_larger_one(actors: Actors, size: dict[str, int]) -> None:
    actors.dispatched("a", "b"), actors.dispatched("c")
    assert ids(actors.claim("w1", **size)) == ["c"]
    assert ids(actors.claim("w2")) == ["a", "b"]


def test_a_small_worker_finds_its_batch_behind_many_large_ones(actors: Actors) -> None:
    # Previously only the first eight batches were looked at.
    actors.limit(max_backlog_batches=100)
    for i in range(20):
        actors.dispatched(f"a{i}", f"b{i}")
    actors.dispatched("small")
    assert ids(actors.claim("w1", max_rows=1)) == ["small"]


def test_a_suspect_waits_until_every_row_of_the_worker_has_a_token(actors: Actors) -> None:
    (held,) = actors.running("a")
    actors.emit(held.emit("lost"))
    actors.dispatch("a")
    assert ids(actors.claim("w1", num_unproven=1)) == []
    claimed = actors.claim("w1")
    assert (ids(claimed), claimed.solo) == (["a"], True)
    assert claimed.rows[0].epoch == 2


def test_a_member_past_its_deadline_never_runs(actors: Actors) -> None:
    actors.dispatched("a", "b", reply_to="r")
    actors.client.hset("hr:{test}:request:a", "deadline", actors.broker.now_ms() - 1)
    assert ids(actors.claim("w1")) == ["b"]
    done = actors.last("a").done
    assert done is not None
    assert done.reason == "expired"
    assert actors.client.xlen("hr:{test}:reply:r") == 1


def test_a_cancelled_member_takes_no_room(actors: Actors) -> None:
    actors.dispatched("a", "b")
    actors.cancel("a")
    assert ids(actors.claim("w1", free_rows=1, max_rows=1, free_tokens=10, max_tokens=10)) == ["b"]


def test_a_batch_whose_members_have_all_ended_makes_way(actors: Actors) -> None:
    actors.dispatched("a"), actors.dispatched("b")
    actors.cancel("a")
    assert ids(actors.claim("w1")) == ["b"]
    assert actors.broker.load()["batches"] == 0


def test_a_member_that_has_moved_to_a_newer_batch_runs_there_only(actors: Actors) -> None:
    actors.dispatched("a", "b")
    actors.client.hset("hr:{test}:request:a", "batch", "9-9")
    assert ids(actors.claim("w1")) == ["b"]
    actors.cancel("a")


def test_a_claim_rings_for_the_scheduler_because_there_is_room_in_the_backlog(actors: Actors) -> None:
    actors.dispatched("a")
    wake = actors.broker.wait_for_requests([], "0-0", 1)
    actors.claim("w1")
    assert actors.broker.wait_for_requests([], wake, 1) != wake
    assert actors.client.xlen("hr:{test}:wake") == 1


def test_a_resumed_request_starts_behind_what_is_published(actors: Actors) -> None:
    (held,) = actors.running("a")
    actors.wrote(held, "chunk", 5)
    actors.wrote(held, "yield")
    actors.dispatch("a")
    (row,) = actors.claim("w2").rows
    assert (row.epoch, row.num_tokens, row.num_chars) == (2, 5, 15)
    held = Holding(row, "w2")
    actors.wrote(held, "stop", 2)
    assert [*actors.chunks("a")] == ["5-0", "7-0"]


@pytest.mark.parametrize("worker", ["", "a:b"])
def test_a_worker_whose_name_would_blur_the_fence_is_refused(actors: Actors, worker: str) -> None:
    actors.dispatched("a")
    with pytest.raises(BrokerUnavailableError, match="a name without a colon"):
        actors.broker.run(replace(actors.claim_call("w1"), worker=worker))
    assert actors.state("a") == "batched"


def test_the_memory_of_a_claim_expires(actors: Actors) -> None:
    actors.running("a")
    assert 50_000 < actors.client.pttl("hr:{test}:worker:w1") <= 60_000
