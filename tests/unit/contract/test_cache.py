"""The response cache: the same answer without a worker, within its size and its life, and nobody's harm."""

import time
from collections import OrderedDict
from typing import Any

import fakeredis
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import fast_settings, understood_by_fakeredis
from tests.unit.contract.actors import NORMAL, Actors

from headrace.broker import Broker
from headrace.moves import RememberCall
from headrace.wire import Chunk, Done, Echo, Reason, Usage

ANSWER = Chunk(0, 0, (0, 1), "ab", Done("length", Usage(4, 2)))


def remember(actors: Actors, key: str = "k", chunk: Chunk = ANSWER, reason: Reason = "length", **limits: int) -> bool:
    limits = {"cache_entries": 10, "cache_bytes": 10_000, **limits}
    call = RememberCall(key, chunk.num_tokens_after, len(chunk.text), reason, chunk.encode("json"),
                        actors.settings.model_copy(update=limits))  # fmt: skip
    return actors.broker.run(call)


def totals(actors: Actors) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in actors.client.hgetall("hr:{test}:cachesum").items()}


def test_a_request_whose_answer_is_kept_is_answered_at_once(actors: Actors) -> None:
    assert remember(actors)
    actors.xadd("a")
    actors.submit("b", cost=7)
    assert actors.admit(cache_key="k", reply_to="r") == ["cached", "cached"]
    for request_id in "ab":
        assert actors.chunks(request_id) == {"2-0": ANSWER}
        fields = actors.broker.request_fields(request_id)
        assert (fields["state"], fields["reason"], fields["at"], fields["o"]) == ("done", "length", ":0:2", "2")
        assert 0 < actors.client.pttl(f"hr:{{test}}:out:{request_id}") <= 60_000
        assert actors.due(request_id) is None
        assert not actors.client.exists(f"hr:{{test}}:job:{request_id}")
    assert actors.broker.load() == {
        "queued": 0, "queued_tokens": 0, "running": 0, "running_tokens": 0, "ready": 0, "batches": 0, "dead": 0,
    }  # fmt: skip
    assert actors.client.xlen("hr:{test}:reply:r") == 2
    assert totals(actors)["hits"] == 2


def test_an_answer_without_tokens_is_a_last_chunk_without_tokens(actors: Actors) -> None:
    answer = Chunk(0, 0, (), "", Done("stop", Usage(4, 0), result={"embeddings": [[1.0]]}))
    assert remember(actors, chunk=answer, reason="stop")
    actors.xadd("a")
    assert actors.admit(cache_key="k") == ["cached"]
    assert actors.chunks("a") == {"0-2": answer}


def test_an_echo_heads_a_kept_answer_too(actors: Actors) -> None:
    echo = Chunk(0, 0, (), "", echo=Echo((7, 8), "p"))
    remember(actors)
    actors.xadd("a")
    assert actors.admit(cache_key="k", echo=echo.encode("json")) == ["cached"]
    assert actors.chunks("a") == {"0-1": echo, "2-0": ANSWER}
    assert actors.broker.chunks_after("a", 0, 0) == [echo, ANSWER]


def test_an_entry_that_is_admitted_twice_is_answered_once(actors: Actors) -> None:
    remember(actors)
    actors.xadd("a"), actors.xadd("a")
    assert actors.admit(cache_key="k") == ["cached", "duplicate"]
    assert len(actors.chunks("a")) == 1


def test_other_requests_and_those_that_want_no_answer_from_it_are_queued(actors: Actors) -> None:
    remember(actors)
    actors.xadd("a")
    assert actors.admit(cache_key="other") == ["queued"]
    actors.xadd("b")
    assert actors.admit(cache_key="") == ["queued"]
    assert totals(actors)["misses"] == 1


def test_invalid_cancelled_and_late_requests_are_not_answered_from_it(actors: Actors) -> None:
    remember(actors)
    actors.xadd("a")
    assert actors.admit(cache_key="k", refusal=b'{"code":"invalid","message":"m","field":"f"}') == ["invalid"]
    actors.cancel("b")
    actors.xadd("b")
    assert actors.admit(cache_key="k") == ["cancelled"]
    actors.xadd("c")
    time.sleep(0.01)
    assert actors.admit(cache_key="k", deadline_ms=1) == ["expired"]


def test_a_hit_passes_a_full_backlog(actors: Actors) -> None:
    remember(actors)
    actors.limit(max_queued_requests=1)
    actors.queued("z")
    actors.xadd("a")
    assert actors.admit(cache_key="k") == ["cached"]


def test_an_answer_that_is_too_old_is_forgotten(actors: Actors) -> None:
    remember(actors)
    key, kept = b"k", actors.client.hget("hr:{test}:cache", "k")
    actors.client.hset("hr:{test}:cache", "k", b"1 " + kept.partition(b" ")[2])
    before = totals(actors)["bytes"]
    actors.xadd("a")
    assert actors.admit(cache_key="k") == ["queued"]
    assert not actors.client.hexists("hr:{test}:cache", key)
    assert actors.client.zcard("hr:{test}:cacheuse") == 0
    assert totals(actors)["bytes"] < before


def test_all_of_it_goes_when_nothing_was_kept_for_a_life(actors: Actors) -> None:
    remember(actors, cache_life_ms=5_000)
    for name in ("cache", "cacheuse", "cachesum"):
        assert 0 < actors.client.pttl(f"hr:{{test}}:{name}") <= 5_000


def test_the_answer_that_was_not_used_for_longest_makes_room(actors: Actors) -> None:
    for key in "abc":
        remember(actors, key, cache_entries=3)
        actors.client.zadd("hr:{test}:cacheuse", {key: ord(key)})
    actors.xadd("x")
    assert actors.admit(cache_key="a") == ["cached"]
    remember(actors, "d", cache_entries=3)
    assert {key.decode() for key in actors.client.hkeys("hr:{test}:cache")} == {"a", "c", "d"}
    assert totals(actors)["evicted"] == 1


def test_an_answer_larger_than_the_cache_is_not_kept(actors: Actors) -> None:
    remember(actors, "a")
    assert not remember(actors, "b", cache_bytes=50)
    assert actors.client.hkeys("hr:{test}:cache") == [b"a"]


def test_a_spoilt_cache_answers_nobody_and_harms_nobody(actors: Actors) -> None:
    for name in ("cache", "cacheuse", "cachesum"):
        remember(actors)
        actors.client.delete(f"hr:{{test}}:{name}")
        actors.client.set(f"hr:{{test}}:{name}", "spoilt")
        actors.xadd(f"of-{name}")
        assert actors.admit(cache_key="k") in (["queued"], ["cached"])
        assert remember(actors)
        assert actors.client.hget("hr:{test}:cache", "k")
    actors.client.hset("hr:{test}:cache", "k", b"no answer at all")
    actors.xadd("a")
    assert actors.admit(cache_key="k") == ["queued"]


steps = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 400), st.booleans()), max_size=20)


@settings(max_examples=25)
@given(steps, st.integers(1, 4), st.integers(120, 900))
def test_it_holds_what_was_used_last_within_entries_and_bytes(
    todo: list[tuple[str, int, bool]], max_entries: int, max_bytes: int
) -> None:
    client = understood_by_fakeredis(fakeredis.FakeRedis(server=fakeredis.FakeServer(), version=(7, 0)))
    check_against_model(Broker(client, fast_settings()), todo, max_entries, max_bytes)
    client.close()


def check_against_model(broker: Broker, todo: list[tuple[str, int, bool]], max_entries: int, max_bytes: int) -> None:
    actors, model = Actors(broker), OrderedDict[str, int]()
    for number, (key, size, is_read) in enumerate(todo):
        if is_read:
            actors.xadd(f"r{number}")
            (verdict,) = actors.admit(cache_key=key)
            assert (verdict == "cached") == (key in model)
            if key in model:
                model.move_to_end(key)
        else:
            chunk = Chunk(0, 0, (), "x" * size, Done("stop", Usage(1, 0)))
            kept = remember(actors, key, chunk, "stop", cache_entries=max_entries, cache_bytes=max_bytes)
            assert_kept(actors, model, key, kept, max_entries, max_bytes)
        # The server's clock may stand still between two steps; the order of use must not.
        if actors.client.zscore("hr:{test}:cacheuse", key) is not None:
            actors.client.zadd("hr:{test}:cacheuse", {key: number})
        held = {name.decode(): len(value) + 1 for name, value in actors.client.hgetall("hr:{test}:cache").items()}
        assert held == dict(model)
        assert totals(actors).get("bytes", 0) == sum(held.values()) <= max_bytes


def assert_kept(actors: Actors, model: Any, key: str, kept: bool, max_entries: int, max_bytes: int) -> None:
    if not kept:
        return
    model.pop(key, None)
    size = len(actors.client.hget("hr:{test}:cache", key)) + 1
    while model and (len(model) >= max_entries or sum(model.values()) + size > max_bytes):
        model.popitem(last=False)
    model[key] = size


def test_the_stream_of_a_hit_is_read_as_any_other(actors: Actors) -> None:
    remember(actors)
    actors.xadd("a")
    assert actors.admit(NORMAL, cache_key="k") == ["cached"]
    assert actors.broker.chunks_after("a", 0, 0) == [ANSWER]
