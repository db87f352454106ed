from dataclasses import replace

import pytest
from tests.unit.contract.actors import Actors, Holding
from tests.unit.contract.audit import check

from headrace.errors import BrokerUnavailableError
from headrace.moves import EmitRow
from headrace.wire import Chunk


def published(actors: Actors, request_id: str = "a") -> list[tuple[str, tuple[int, ...]]]:
    return [(entry, chunk.ids) for entry, chunk in actors.chunks(request_id).items()]


def test_chunks_stand_under_the_number_of_tokens_written_once_they_are_in(actors: Actors) -> None:
    (held,) = actors.running("a")
    actors.wrote(held, "chunk", 1)
    actors.wrote(held, "chunk", 3)
    actors.wrote(held, "length", 2)
    assert published(actors) == [("1-0", (0,)), ("4-0", (1, 2, 3)), ("6-0", (4, 5))]
    assert actors.state("a") == "done"


def test_a_terminal_chunk_without_tokens_stands_behind_the_last_ones(actors: Actors) -> None:
    for request_id, num_tokens in (("a", 0), ("b", 3)):
        (held,) = actors.running(request_id)
        if num_tokens:
            actors.wrote(held, "chunk", num_tokens)
        actors.wrote(held, "stop")
    assert [*actors.chunks("a")] == ["0-2"]
    assert [*actors.chunks("b")] == ["3-0", "3-2"]


def test_a_chunk_sent_again_is_accepted_and_published_once(actors: Actors) -> None:
    (held,) = actors.running("a", reply_to="r")
    row = actors.wrote(held, "chunk", 2)
    assert actors.emit(row).refused == frozenset()
    assert published(actors) == [("2-0", (0, 1))]
    assert actors.client.xlen("hr:{test}:reply:r") == 1


def test_a_terminal_chunk_sent_again_is_refused_and_published_once(actors: Actors) -> None:
    (held,) = actors.running("a")
    row = actors.wrote(held, "stop", 2)
    assert actors.emit(row).refused == {"a"}
    assert published(actors) == [("2-0", (0, 1))]


def test_an_end_does_not_pass_for_a_chunk_that_reached_as_far(actors: Actors) -> None:
    (held,) = actors.running("a")
    stale = replace(held)
    actors.wrote(held, "chunk", 1)
    assert actors.emit(stale.emit("stop", 1)).refused == {"a"}
    assert actors.state("a") == "running"


@pytest.mark.parametrize("sizes", [(4,), (1,), (2, 1)])
def test_a_chunk_cut_anew_is_not_published_wherever_it_is_cut(actors: Actors, sizes: tuple[int, ...]) -> None:
    # [0,1,2] published, its answer lost, and then sent as [0,1,2,3], as [0], or as [0,1],[2]. Only the very last of
    # these passes for the chunk that is in, since it ends where that one ends.
    (held,) = actors.running("a")
    stale = replace(held)
    actors.wrote(held, "chunk", 3)
    for size in sizes:
        row = stale.emit("chunk", size)
        assert (actors.emit(row).refused == {"a"}) == (row.next != "w1:1:3")
        stale.written(row)
    assert published(actors) == [("3-0", (0, 1, 2))]


def test_a_late_chunk_is_refused_behind_a_newer_one(actors: Actors) -> None:
    (held,) = actors.running("a")
    late = actors.wrote(held, "chunk", 1)
    actors.wrote(held, "chunk", 1)
    assert actors.emit(late).refused == {"a"}
    assert published(actors) == [("1-0", (0,)), ("2-0", (1,))]


def test_a_chunk_that_skips_tokens_is_refused(actors: Actors) -> None:
    (held,) = actors.running("a")
    held.num_tokens, held.num_chars = 1, 3
    assert actors.emit(held.emit("chunk", 1)).refused == {"a"}
    assert published(actors) == []


def test_a_worker_that_lost_its_lease_writes_nothing_even_if_it_gets_the_request_again(actors: Actors) -> None:
    (zombie,) = actors.running("a")
    actors.make_due("a")
    assert actors.reap().num_requeued == 1
    everything = [zombie.emit("chunk", 1), zombie.emit("stop", 1), zombie.emit("renew"), zombie.emit("yield")]
    assert all(actors.emit(row).refused == {"a"} for row in everything)
    actors.dispatch("a")
    (row,) = actors.claim("w1").rows
    assert all(actors.emit(row).refused == {"a"} for row in everything)
    assert published(actors) == []
    actors.wrote(Holding(row, "w1"), "chunk", 1)


def test_a_renewal_moves_the_lease_and_nothing_else(actors: Actors) -> None:
    (held,) = actors.running("a")
    actors.client.zadd("hr:{test}:due", {"a": 5})
    before = actors.broker.request_fields("a")
    now_ms = actors.emit(held.emit("renew")).now_ms
    assert actors.due("a") == now_ms + actors.settings.lease_ms
    assert actors.broker.request_fields("a") == before


def test_a_chunk_renews_too_also_when_it_is_sent_again(actors: Actors) -> None:
    (held,) = actors.running("a")
    row = held.emit("chunk", 1)
    for _ in range(2):
        actors.client.zadd("hr:{test}:due", {"a": 5})
        now_ms = actors.emit(row).now_ms
        assert actors.due("a") == now_ms + actors.settings.lease_ms


def test_reply_streams_get_one_entry_a_flush_with_every_chunk_of_theirs(actors: Actors) -> None:
    actors.queued("a", "b", reply_to="r")
    actors.queued("c", reply_to="s")
    actors.queued("d")
    actors.dispatch("a", "b", "c", "d")
    rows = [Holding(row, "w1").emit("chunk", 1) for row in actors.claim("w1").rows]
    actors.emit(*rows)
    replies = {name: actors.client.xrange(f"hr:{{test}}:reply:{name}") for name in "rs"}
    assert [len(entries) for entries in replies.values()] == [1, 1]
    assert {i: Chunk.decode(c).ids for i, c in replies["r"][0][1].items()} == {b"a": (0,), b"b": (0,)}
    assert set(replies["s"][0][1]) == {b"c"}
    assert 0 < actors.client.pttl("hr:{test}:reply:r") <= 600_000


def test_a_subscriber_hears_every_chunk_and_the_end(actors: Actors) -> None:
    (held,) = actors.running("a")
    with actors.client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe("hr:{test}:out:a")
        pubsub.get_message(timeout=1)
        sent = [actors.wrote(held, "chunk", 1).chunk, actors.wrote(held, "chunk", 2).chunk]
        actors.cancel("a")
        heard = [message["data"] for _ in range(3) if (message := pubsub.get_message(timeout=2))]
        assert pubsub.get_message(timeout=0.02) is None
    assert heard[:2] == sent
    assert Chunk.decode(heard[2]) == actors.last("a")


def test_a_flush_of_256_rows_with_replies_goes_in_at_once(actors: Actors) -> None:
    ids = [f"r{i}" for i in range(256)]
    for begin in range(0, 256, 64):
        actors.queued(*ids[begin : begin + 64], reply_to="everybody")
    actors.dispatch(*ids)
    held = [Holding(row, "w1") for row in actors.claim("w1", free_rows=256, max_rows=256).rows]
    assert actors.emit(*[h.emit("chunk", 2) for h in held]).refused == frozenset()
    ((_, fields),) = actors.client.xrange("hr:{test}:reply:everybody")
    assert len(fields) == 256
    for h in held:
        h.num_tokens, h.num_chars = 2, 6
    assert actors.emit(*[h.emit("stop") for h in held]).refused == frozenset()
    assert {h["state"] for h in check(actors.broker).values()} == {"done"}


def test_one_refused_row_does_not_disturb_its_neighbours(actors: Actors) -> None:
    a, b = actors.running("a", "b")
    actors.cancel("a")
    assert actors.emit(a.emit("chunk", 1), b.emit("chunk", 1)).refused == {"a"}
    assert published(actors, "b") == [("1-0", (0,))]


def test_an_unknown_request_is_refused(actors: Actors) -> None:
    (held,) = actors.running("a")
    assert actors.emit(replace(held.emit("chunk", 1), request_id="b")).refused == {"b"}


def bad(row: EmitRow) -> list[EmitRow]:
    """Rows that no worker should send."""
    return [
        replace(row, entry="2-0"),
        replace(row, entry="1-2"),
        replace(row, next=row.prev),
        replace(row, verb="stop", entry="0-0", next=row.prev),
        replace(row, prev="w1:1:1", next="w1:1:0", entry="0-0"),
        replace(row, verb="renew"),
        replace(row, verb="gone"),  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("which", range(7))
def test_a_malformed_row_is_refused_before_anything_is_written(actors: Actors, which: int) -> None:
    # Previously the rows before it were written, and those behind it never, however often the call was sent.
    a, b = actors.running("a", "b")
    with pytest.raises(BrokerUnavailableError, match="b cannot go on"):
        actors.emit(a.emit("chunk", 1), bad(b.emit("chunk", 1))[which])
    assert actors.chunks("a") == {}


def test_an_id_that_stands_twice_in_a_call_is_refused_before_anything_is_written(actors: Actors) -> None:
    a, b = actors.running("a", "b")
    with pytest.raises(BrokerUnavailableError, match="b stands twice"):
        actors.emit(a.emit("chunk", 1), b.emit("chunk", 1), b.emit("chunk", 1))
    assert actors.chunks("a") == actors.chunks("b") == {}
