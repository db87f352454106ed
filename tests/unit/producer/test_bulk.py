"""What jobs on RQ decide without a server: names, errors, and how results of many requests are read together."""

import math
import random
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.broker import Broker
from headrace.entries import Position
from headrace.errors import (
    BrokerUnavailableError,
    CancelledError,
    DecodeError,
    ExpiredError,
    FailedError,
    HeadraceError,
    InvalidRequestError,
    OverloadedError,
    UnknownRequestError,
)
from headrace.keys import REQUEST_ID_PATTERN
from headrace.producer.bulk.failure import failure_fields
from headrace.producer.bulk.many import check_prompts, request_of
from headrace.producer.bulk.names import current_name, request_name, seed_of
from headrace.producer.bundle import Bundle
from headrace.producer.cutting import Cutter
from headrace.producer.options import checked_id
from headrace.producer.reading import Reading
from headrace.wire import Chunk, Done, Failure, Usage

JOB_IDS = st.text("abcXYZ019_-", min_size=1, max_size=200)


@given(JOB_IDS, st.sampled_from(["", "acme", "t" * 64]), st.none() | st.integers(0, 9_999_999))
def test_a_name_can_be_a_requests_with_room_for_attempts(job_id: str, tenant: str, index: int | None) -> None:
    name = request_name(job_id, tenant, index)
    assert checked_id(f"{name}.r99", REQUEST_ID_PATTERN)
    assert name == request_name(job_id, tenant, index)
    assert not tenant or name.startswith(f"{tenant}:")
    assert 0 <= seed_of(name) < 2**63


@given(JOB_IDS, JOB_IDS, st.none() | st.integers(0, 99), st.none() | st.integers(0, 99))
def test_no_two_jobs_or_prompts_share_a_name(one: str, other: str, i: int | None, k: int | None) -> None:
    assert (request_name(one, "", i) == request_name(other, "", k)) == ((one, i) == (other, k))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "a"),
        ({"state": "running"}, "a"),
        ({"state": "done", "reason": "length"}, "a"),
        ({"state": "done", "reason": "stop"}, "a"),
        ({"state": "tomb"}, "a.r1"),
        ({"state": "done", "reason": "cancelled"}, "a.r1"),
        ({"state": "done", "reason": "expired"}, "a.r1"),
        ({"state": "done", "reason": "error"}, "a.r1"),
    ],
)
def test_what_has_failed_is_asked_anew_and_all_else_read_on(
    fake_broker: Broker, fields: Mapping[str, str], expected: str
) -> None:
    if fields:
        fake_broker.client.hset(fake_broker.keys.request("a"), mapping=fields)
    assert current_name(fake_broker, "a") == expected
    fake_broker.client.hset(fake_broker.keys.request("a.r1"), mapping=fields or {"state": "running"})
    assert current_name(fake_broker, "a") == ("a.r2" if expected == "a.r1" else "a")


@pytest.mark.parametrize(
    ("error", "code", "field"),
    [
        (InvalidRequestError("x", field="top_p"), "invalid", "top_p"),
        (OverloadedError("x"), "overloaded", ""),
        (ExpiredError("x"), "expired", ""),
        (CancelledError("x"), "cancelled", ""),
        (UnknownRequestError("x"), "unknown", ""),
        (FailedError("x", code="poison"), "poison", ""),
        (FailedError("x"), "failed", ""),
        (DecodeError("x"), "failed", ""),
    ],
)
def test_an_error_tells_its_code_and_field(error: HeadraceError, code: str, field: str) -> None:
    assert failure_fields(error) == {"code": code, "message": "x", "field": field}


def test_a_prompts_own_fields_go_before_those_of_all() -> None:
    shared = {"max_tokens": 5, "seed": 1}
    assert request_of("hi", shared) == ("hi", None, shared)
    assert request_of({"messages": [1], "seed": 2}, shared) == (None, [1], {"max_tokens": 5, "seed": 2})
    with pytest.raises(InvalidRequestError, match="n: "):
        request_of("hi", {"n": 2})
    with pytest.raises(InvalidRequestError, match=r"task: .* enqueue headrace.producer.jobs.embed"):
        request_of({"prompt": "hi", "task": "embed"}, shared)


@pytest.mark.parametrize("prompts", [None, [], "text", {"a": 1}, ["x"] * 4])
def test_prompts_are_a_list_of_a_length_within_the_limit(prompts: object) -> None:
    with pytest.raises(InvalidRequestError, match="prompts: "):
        check_prompts(prompts, 3)


def _reading(name: str) -> Reading:
    return Reading(name, None, Cutter(), via="move", now_s=0.0, timeout_s=math.inf, wait_s=math.inf)


def _chunk(i: int, o: int, num_tokens: int, done: Done | None = None) -> Chunk:
    return Chunk(i, o, tuple(range(i, i + num_tokens)), "x" * num_tokens, done)


class World:
    """Streams that grow by chance, and a bundle that reads them through a server that is away by chance."""

    def __init__(self, lengths: list[int], failing: set[int], seed: int) -> None:
        self.dice = random.Random(seed)
        self.streams: dict[str, list[Chunk]] = {}
        for index, length in enumerate(lengths):
            error = Failure("poison", "no") if index in failing else None
            done = Done("error" if error else "length", Usage(1, length), error)
            chunks = [_chunk(i, i, 1) for i in range(length)]
            self.streams[f"r{index}"] = [*chunks, _chunk(length, length, 0, done)]
        self.written = dict.fromkeys(self.streams, 0)
        self.bundle = Bundle()
        self.got: dict[int, list[int]] = {index: [] for index in range(len(lengths))}
        self.failed: dict[int, bool] = {}

    def round(self, now_s: float) -> None:
        step = self.bundle.next_round(now_s)
        assert set(step.looks).isdisjoint(step.reads)
        for name in step.looks:
            self.bundle.saw(name, "running", now_s)
        if not step.reads:
            return
        if self.dice.random() < 0.1:
            self.bundle.failed(BrokerUnavailableError("away"), now_s)
            return
        for name, chunks in self.streams.items():
            self.written[name] = min(self.written[name] + self.dice.randrange(3), len(chunks))
        found = {name: _behind(self.streams[name][: self.written[name]], at) for name, at in step.reads.items()}
        for piece in self.bundle.got(step, {name: chunks for name, chunks in found.items() if chunks}, now_s):
            assert piece.index is not None
            self.got[piece.index] += piece.ids
        for index, reading in self.bundle.take_ended():
            assert index not in self.failed
            self.failed[index] = reading.failure is not None


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.sets(st.integers(0, 5)), st.integers())
def test_a_bundle_hands_out_every_token_once_in_order_whatever_comes_when(
    lengths: list[int], failing: set[int], seed: int
) -> None:
    world = World(lengths, failing, seed)
    waiting = list(range(len(lengths)))
    for now_s in range(2_000):
        if waiting and world.dice.random() < 0.5:
            world.bundle.add(waiting[0], _reading(f"r{waiting.pop(0)}"))
        if world.bundle:
            world.round(float(now_s))
        elif not waiting:
            break
    assert world.got == {index: list(range(length)) for index, length in enumerate(lengths)}
    assert world.failed == {index: index in failing for index in range(len(lengths))}


def _behind(chunks: list[Chunk], position: Position) -> list[Chunk]:
    """As XREAD does: entries whose id is above; an end without tokens stands behind its tokens."""
    return [
        chunk
        for chunk in chunks
        if chunk.num_tokens_after > position.num_tokens
        or (chunk.done is not None and chunk.num_tokens_after >= position.num_tokens)
    ]
