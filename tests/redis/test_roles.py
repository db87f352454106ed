"""The rights that docs/design.md gives each role suffice for what it does, on both servers, and for nothing else."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis
from tests.conftest import fast_settings
from tests.unit.contract.actors import Actors, Holding

from headrace.broker import Broker
from headrace.connection import translated
from headrace.errors import ConfigurationError
from headrace.keys import RequestStream
from headrace.moves import (
    AdmitCall,
    BatchNote,
    CancelCall,
    ClaimCall,
    DispatchCall,
    EmitCall,
    HeartbeatCall,
    ReapCall,
    RememberCall,
    SubmitCall,
)
from headrace.overview import look
from headrace.testing.servers import Server

STREAM = RequestStream("normal", "t1")
#: What every script may call; a script's commands and keys are checked against its caller.
SCRIPTS = (
    "+evalsha +script|load +time +hmget +hget +hset +hincrby +get +del +persist +pexpire +pttl +publish "
    "+xadd +xdel +xlen +xrange +xrevrange +zadd +zrem"
)
TENANT = (
    "%W~hr:{test}:requests:*:t1 %R~hr:{test}:out:t1:* &hr:{test}:out:t1:* "
    "+xadd +xread +xrange +subscribe +unsubscribe +hello +ping"
)
PRODUCER = (
    "~hr:{test}:requests* ~hr:{test}:request:* ~hr:{test}:job:* ~hr:{test}:out:* ~hr:{test}:reply:* ~hr:{test}:ready "
    "~hr:{test}:due ~hr:{test}:load %R~hr:{test}:contract &hr:{test}:out:* " + SCRIPTS + " "
    "+xread +hgetall +subscribe +unsubscribe +hello +ping +info"
)
WORKER = (
    "~hr:{test}:request:* ~hr:{test}:job:* ~hr:{test}:out:* ~hr:{test}:reply:* ~hr:{test}:batches ~hr:{test}:wake "
    "~hr:{test}:due ~hr:{test}:ready ~hr:{test}:load ~hr:{test}:dead ~hr:{test}:worker:* ~hr:{test}:workers "
    "~hr:{test}:classes ~hr:{test}:cost ~hr:{test}:batchlog ~hr:{test}:cache* "
    "%R~hr:{test}:measure %R~hr:{test}:contract "
    "&hr:{test}:out:* " + SCRIPTS + " +xread +zscore +zrange +zrangebyscore +zcard +hdel +hello +ping +info"
)
SCHEDULER = (
    "~hr:{test}:* &hr:{test}:out:* " + SCRIPTS + " +xread +hsetnx +zscore +zrange +zrangebyscore +zremrangebyscore "
    "+zrandmember +zcard +hdel +set +multi +exec +hgetall +hello +ping +info"
)


@pytest.fixture
def users(server: Server) -> Iterator[dict[str, Broker]]:
    """A broker as each role sees it."""
    roles = {"tenant": TENANT, "producer": PRODUCER, "worker": WORKER, "scheduler": SCHEDULER}
    brokers = {}
    with server.client() as admin:
        for role, rules in roles.items():
            admin.execute_command("ACL", "SETUSER", role, "reset", "on", ">pw", *rules.split())
            client = redis.Redis.from_url(server.url, username=role, password="pw", protocol=2, retry=None)
            brokers[role] = Broker(client, fast_settings(redis_url=server.url, tenants={"t1": 1.0}))
        yield brokers
        for role, broker in brokers.items():
            broker.close()
            admin.execute_command("ACL", "DELUSER", role)


def test_each_role_can_do_all_that_it_does(users: dict[str, Broker], server: Server) -> None:
    tenant, scheduler, worker, producer = (users[name] for name in ("tenant", "scheduler", "worker", "producer"))
    settings = scheduler.settings
    scheduler.client.info()
    scheduler.adopt_contract()
    assert scheduler.leadership.take("s", 10_000)
    # A tenant asks by itself, and an application of the operator's through the move.
    tenant.add_request(STREAM, "t1:a", "json", b"{}")
    assert producer.run(SubmitCall("p", RequestStream("normal"), "mp", b"", 5, 1_000, "r", settings)).verdict == "ok"
    for stream in (STREAM, RequestStream("normal")):
        scheduler.wait_for_requests([stream], "0-0", 1)
        admissions = Actors(scheduler).judged(stream)
        assert scheduler.run(AdmitCall(stream, admissions, settings)) == ["queued"]
    scheduler.window(5).requests, scheduler.waiting_batches(), scheduler.living.workers(1_000), scheduler.costs.tables()
    scheduler.load(), scheduler.stream_lengths([STREAM]), scheduler.dead_requests(5), scheduler.now_ms()
    assert scheduler.run(DispatchCall(["t1:a", "p"], settings, BatchNote("another"))).left == ()
    # A worker runs it, renews, publishes, hands back.
    worker.client.info(), worker.client.hmget("hr:{test}:contract", "min", "max")
    info = '{"max_rows": 8, "kv_tokens": 100, "num_rows": 0}'
    worker.run(HeartbeatCall("worker", "w", info, 1_000, "gpu"))
    assert scheduler.costs.request_measurement() == ["gpu"]
    assert worker.run(HeartbeatCall("worker", "w", info, 1_000, "gpu")).measure_ms > 0
    worker.client.hset("hr:{test}:cost", "gpu", b"table")
    worker.client.xadd("hr:{test}:batchlog", {"kind": "ran"}, maxlen=10)
    assert [beat.name for beat in worker.living.heartbeats("worker", 1_000)] == ["w"]
    worker.client.xread({"hr:{test}:batches": "0-0"})
    claim = ClaimCall("w", 1, 8, 100, 8, 100, 0, 1_000)
    a, p = (Holding(row, "w") for row in worker.run(claim).rows)
    with tenant.client.pubsub() as pubsub:
        pubsub.subscribe("hr:{test}:out:t1:a")
        assert worker.run(EmitCall([a.emit("chunk", 1), p.emit("renew")], settings)).refused == frozenset()
    a.num_tokens, a.num_chars = 1, 3
    assert worker.client.xrange("hr:{test}:out:t1:a")
    assert worker.run(EmitCall([a.emit("stop"), p.emit("yield")], settings)).refused == frozenset()
    assert [chunk.i for chunk in tenant.chunks_after("t1:a", 0, 0)] == [0, 1]
    for nonce in (2, 3, 4):  # and what kills it is buried
        scheduler.run(DispatchCall(["p"], settings))
        (p,) = (Holding(row, "w") for row in worker.run(replace(claim, nonce=nonce)).rows)
        assert worker.run(EmitCall([p.emit("lost")], settings)).refused == frozenset()
    assert producer.request_fields("p")["reason"] == "error"
    assert producer.run(CancelCall("p", settings)) == "done"
    assert producer.run(SubmitCall("q", RequestStream("bulk"), "json", b"", 5, 1_000, "", settings)).verdict == "ok"
    assert producer.run(CancelCall("q", settings)) == "submitted"
    tenant.add_cancellation(STREAM, "t1:b")
    assert Actors(scheduler).admit(STREAM) == ["cancelled"]
    with server.client() as admin:
        Actors(Broker(admin, settings)).make_due("q")
    scheduler.run(ReapCall(10, settings))
    worker.client.delete("hr:{test}:worker:w"), worker.client.zrem("hr:{test}:workers", "w")
    scheduler.costs.batch_log(5)
    assert scheduler.costs.forget(-1) == ["gpu"]
    scheduler.living.beat("scheduler", "s", {}, 1_000)
    look(scheduler, 5)
    scheduler.living.leave("scheduler", "s")
    scheduler.leadership.resign("s")


def test_what_a_worker_keeps_a_scheduler_tells_the_next_who_asks(users: dict[str, Broker]) -> None:
    scheduler, worker, producer = (users[name] for name in ("scheduler", "worker", "producer"))
    small = scheduler.settings.model_copy(update={"cache_entries": 1})
    for key in ("k", "l", "l"):  # and what has no room makes some
        assert worker.run(RememberCall(key, 0, 0, "stop", b"{}", small))
    stream = RequestStream("normal")
    producer.run(SubmitCall("c", stream, "json", b"", 5, 1_000, "", small))
    admissions = [replace(admission, cache_key="l") for admission in Actors(scheduler).judged(stream)]
    assert scheduler.run(AdmitCall(stream, admissions, small)) == ["cached"]
    found = scheduler.cache_totals()
    assert {name: found[name] for name in ("entries", "hits", "misses", "evicted")} == {
        "entries": 1, "hits": 1, "misses": 0, "evicted": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("role", "command"),
    [
        ("tenant", ["XRANGE", "hr:{test}:requests:normal:t1", "-", "+"]),
        ("tenant", ["XREAD", "STREAMS", "hr:{test}:out:t2:a", "0"]),
        ("tenant", ["XREAD", "STREAMS", "hr:{test}:out:a", "0"]),
        ("tenant", ["XADD", "hr:{test}:requests:normal:t2", "*", "a", "b"]),
        ("tenant", ["XADD", "hr:{test}:requests", "*", "a", "b"]),
        ("tenant", ["XADD", "hr:{test}:out:t1:a", "*", "a", "b"]),
        ("tenant", ["SUBSCRIBE", "hr:{test}:out:t2:a"]),
        ("tenant", ["EVAL", "return 1", "0"]),
        ("tenant", ["DEL", "hr:{test}:requests:normal:t1"]),
        ("tenant", ["HGETALL", "hr:{test}:request:t1:a"]),
        ("worker", ["XADD", "hr:{test}:requests", "*", "a", "b"]),
        ("worker", ["XRANGE", "hr:{test}:requests:normal:t1", "-", "+"]),
        ("worker", ["XRANGE", "hr:{other}:batches", "-", "+"]),
        ("worker", ["FLUSHALL"]),
        ("worker", ["CONFIG", "GET", "*"]),
        ("producer", ["XRANGE", "hr:{test}:batches", "-", "+"]),
        ("scheduler", ["XRANGE", "hr:{other}:requests", "-", "+"]),
        ("scheduler", ["FLUSHALL"]),
        ("scheduler", ["KEYS", "*"]),
    ],
)
def test_no_role_can_do_more(users: dict[str, Broker], role: str, command: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="refuses these credentials"), translated(users[role].settings):
        users[role].client.execute_command(*command)


def test_a_script_cannot_reach_what_its_caller_may_not(users: dict[str, Broker]) -> None:
    sha = users["worker"].client.script_load("return redis.call('XRANGE', 'hr:{test}:requests', '-', '+')")
    with pytest.raises(redis.exceptions.RedisError, match=r"(?i)permission|can.t access"):
        users["worker"].client.evalsha(sha, 0)
