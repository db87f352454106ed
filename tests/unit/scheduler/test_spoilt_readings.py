"""Whatever a process writes of itself into Redis, those who read it go on, and see the others."""

import json
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from typing import Any

import fakeredis
import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console
from tests.conftest import fast_settings, understood_by_fakeredis

from headrace.broker import Broker
from headrace.cli import costs, health, status
from headrace.cli.top_view import frame
from headrace.errors import DecodeError
from headrace.keys import RequestStream
from headrace.moves import HeartbeatCall
from headrace.overview import look
from headrace.stock import take_stock
from headrace.testing.words import word_tokenizer
from headrace.workers.costs.table import CostTable
from headrace.workers.metrics import Figures
from headrace.workers.scheduler.admission import Admitter
from headrace.workers.scheduler.metrics import Tally, gather
from headrace.workers.scheduler.process import Scheduler

CLASS = "card/r1/float32"
SOUND: dict[str, Any] = {"host": "here", "class": CLASS, "max_rows": 8, "kv_tokens": 4096, "num_rows": 1,
                         "tokens_per_s": 2.5}  # fmt: skip
CUT = {"kind": "cut", "batch": "5-0", "class": CLASS, "rows": "1", "tokens": "4", "longest": "4", "ms": "2.5"}
RAN = {"kind": "ran", "batch": "5-0", "class": CLASS, "worker": "w1", "rows": "1", "tokens": "4", "ms": "2.5"}

texts = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["\ud800", "[/red]", "\x1b[2J", "nan", "1e999", "9" * 400]
)
scalars = st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | texts
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3), max_leaves=6)
scores = st.floats(allow_nan=False)
names = st.binary(min_size=1, max_size=6) | st.sampled_from([b"[/red]", b"\xff"])


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


infos = (
    st.binary(max_size=40)
    | st.builds(encoded, values)
    | st.builds(
        lambda odd: encoded(SOUND | odd), st.dictionaries(st.sampled_from(sorted(SOUND)) | texts, values, max_size=3)
    )
)
sides = (
    st.lists(st.integers(-1, 9), max_size=3).map(lambda side: tuple(sorted(side)))
    | st.binary(max_size=3)
    | st.text("ab", max_size=2)
    | st.dictionaries(st.integers(1, 9), st.integers(0, 9), max_size=2)
    | st.sampled_from([None, True, 5, (1, 1 << 40), (1 << 60,), (True,), (1.0,), msgpack.Timestamp(1)])
)
costs_ms = st.lists(st.floats() | st.integers(0, 1 << 62), max_size=3).map(tuple) | sides
tables = st.binary(max_size=40) | st.builds(
    lambda *fields: msgpack.packb(fields),
    st.just(1) | st.booleans(),
    sides,
    sides,
    st.lists(costs_ms, max_size=3).map(tuple) | st.dictionaries(st.integers(1, 9), costs_ms, max_size=2) | sides,
    sides,
    costs_ms,
)
odd_bytes = st.binary(max_size=6) | st.sampled_from(
    [b"nan", b"inf", b"-1", b"9" * 400, b"1e308", b"\xff", b"5-", b"[/red]"]
)
log_entries = st.dictionaries(st.binary(min_size=1, max_size=4), odd_bytes, min_size=1, max_size=3) | st.builds(
    lambda sound, odd: sound | odd,
    st.sampled_from([CUT, RAN]),
    st.dictionaries(st.sampled_from(sorted(CUT | RAN)), odd_bytes, max_size=3),
)


def made() -> Broker:
    client = understood_by_fakeredis(fakeredis.FakeRedis(server=fakeredis.FakeServer(), version=(7, 0)))
    broker = Broker(client, fast_settings(cache_entries=10, lease_ms=60_000))
    broker.run(HeartbeatCall("worker", "sound", json.dumps(SOUND), 60_000, CLASS))
    broker.run(HeartbeatCall("scheduler", "s1", '{"host": "here"}', 60_000))
    return broker


def everybody_reads(broker: Broker) -> None:
    """A scheduler serves a request, and every command tells of the sound worker."""
    broker.client.xadd(broker.keys.requests(RequestStream("normal")), {"id": "a", "json": '{"prompt": "one two"}'})
    Scheduler(broker, Admitter(word_tokenizer(64), "r1", broker.settings), broker.settings).step()
    assert broker.request_fields("a")["state"] == "batched"
    found = look(broker, 10)
    assert "sound" in [worker.worker for worker in found.workers]
    assert [worker.worker for worker in broker.living.workers(60_000)] == [worker.worker for worker in found.workers]
    json.dumps(asdict(found), allow_nan=False).encode()
    "\n".join(status._lines("redis://", found)).encode()
    drawn = StringIO()
    console = Console(file=drawn, width=100)
    console.print(frame(found, "", url="redis://", width=100, height=None))
    drawn.getvalue().encode()
    for kind in ("worker", "scheduler"):
        health._silences_ms(broker, kind, broker.settings)
    assert take_stock(broker).states["batched"] == 1
    with redirect_stdout(StringIO()) as out:
        costs._print(costs.ClassRow.read(broker))
    out.getvalue().encode(errors="surrogateescape")
    figures = Figures("test")
    gather(figures, broker, Tally())
    registry = CollectorRegistry()
    registry.register(type("Found", (), {"collect": lambda _: figures.families})())
    assert b"headrace_queue_workers" in generate_latest(registry)


@settings(deadline=None, max_examples=25)
@given(names, scores, infos)
@example(b"evil", 9e15, b"[" * 200_000)
@example(b"evil", 9e15, encoded(SOUND | {"num_rows": 10**400, "max_rows": 1}))
@example(b"evil", 9e15, encoded(SOUND | {"class": "\ud800"}))
@example(b"evil", 9e15, encoded(SOUND | {"tokens_per_s": None}))
@example(b"evil", 9e15, encoded(SOUND | {"tokens_per_s": "abc"}))
@example(b"evil", 9e15, encoded(SOUND | {"num_rows": float("nan")}))
@example(b"evil", 9e15, b"{}")
@example(b"evil", float("inf"), encoded(SOUND))
@example(b"[/red]", 9e15, encoded(SOUND | {"class": "[/red]"}))
def test_no_heartbeat_ends_anybody(name: bytes, score: float, info: bytes) -> None:
    broker = made()
    for kind in ("worker", "scheduler"):
        broker.client.hset(f"{broker.keys.prefix}{kind}:".encode() + name, "info", info)
        broker.client.zadd(f"{broker.keys.prefix}{kind}s", {name: score})
    everybody_reads(broker)


def test_a_heartbeat_that_is_no_hash_ends_nobody() -> None:
    broker = made()
    broker.client.set(broker.keys.worker("evil"), "oops")
    broker.client.zadd(broker.keys.workers, {"evil": 9e15})
    everybody_reads(broker)


@settings(deadline=None, max_examples=25)
@given(tables, names, scores)
@example(msgpack.packb((1, b"\x01\x40", (1, 16), ((1.0, 2.0), (3.0, 4.0)), (1, 100), (1.0, 2.0))), b"x", 0.0)
@example(msgpack.packb((1, (1, 64), b"\x01\x10", ((1.0, 2.0), (3.0, 4.0)), (1, 100), (1.0, 2.0))), b"x", 0.0)
@example(msgpack.packb((1, (1, 64), (1, 16), ((1.0, 2.0), (3.0, 4.0)), b"\x01\x40", (1.0, 2.0))), b"x", 0.0)
@example(msgpack.packb((1, {1: 0, 64: 0}, (1, 16), ((1.0, 2.0), (3.0, 4.0)), (1, 100), (1.0, 2.0))), b"x", 0.0)
@example(b"\x91" * 100_000 + b"\x01", b"\xff", float("inf"))
def test_no_cost_table_and_no_class_ends_anybody(table: bytes, name: bytes, seen: float) -> None:
    broker = made()
    broker.client.hset(broker.keys.cost, mapping={CLASS: table, name: table})
    broker.client.zadd(broker.keys.classes, {name: seen})
    everybody_reads(broker)


@settings(deadline=None, max_examples=25)
@given(st.lists(log_entries, min_size=1, max_size=4))
def test_no_entry_of_the_log_of_batches_ends_anybody(entries: list[dict[Any, Any]]) -> None:
    broker = made()
    for entry in entries:
        broker.client.xadd(broker.keys.batch_log, entry)
    everybody_reads(broker)


@settings(deadline=None)
@given(tables)
def test_a_table_that_can_be_read_prices_whatever_is_asked(data: bytes) -> None:
    try:
        table = CostTable.decode(data)
    except DecodeError:
        return
    for length, rows in ((1, 1), (7, 3), (100_000, 300)):
        assert 0 <= table.cost(length, rows) < float("inf")
    assert CostTable.decode(table.encode()) == table


@pytest.mark.parametrize("key", ["leader", "ready"])
def test_a_name_that_is_no_text_ends_nobody(key: str) -> None:
    broker = made()
    if key == "leader":
        broker.client.set(broker.keys.leader, b"\xff")
        assert look(broker, 0).leader == "\ufffd"
    else:
        broker.client.zadd(broker.keys.ready, {b"\xff": 0})
        everybody_reads(broker)


def test_totals_that_are_no_numbers_are_told_with_what_to_do() -> None:
    broker = made()
    broker.client.hset(broker.keys.load, "queued", "many")
    with pytest.raises(DecodeError, match="load holds no numbers in queued: put it right"):
        look(broker, 0)
    figures = Figures("test")
    gather(figures, broker, Tally())
    assert ("headrace_broker_up", 1) in [(f.name, f.samples[0].value) for f in figures.families if f.samples]
