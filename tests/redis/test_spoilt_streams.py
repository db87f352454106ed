"""What others write into a result's or a reply's key spoils that key and nothing else."""

import pytest

from headrace.broker import Broker
from headrace.errors import InvalidRequestError
from headrace.keys import RequestStream
from headrace.moves import (
    Admission,
    AdmitCall,
    ClaimCall,
    DispatchCall,
    EmitCall,
    EmitRow,
    ReapCall,
    SubmitCall,
    fence,
)
from headrace.wire import Chunk

NORMAL = RequestStream("normal")


def run_until_claimed(broker: Broker, *names: str, reply_to: str = "") -> None:
    settings = broker.settings
    for name in names:
        broker.client.xadd(broker.keys.requests(NORMAL), {"json": "{}"})
        (entry,) = broker.oldest_requests([NORMAL], 1)[0]
        admission = Admission(
            entry=entry.id, request_id=name, cancel=False, encoding="json", refusal=b"", job=b"job", cost_tokens=8,
            prompt_tokens=4, deadline_ms=0, reply_to=reply_to, ttl_ms=60_000,
        )  # fmt: skip
        assert broker.run(AdmitCall(NORMAL, [admission], settings)) == ["queued"]
    broker.run(DispatchCall(names, settings))
    assert len(broker.run(ClaimCall("w", 1, 8, 800, 8, 800, 0, settings.lease_ms)).rows) == len(names)


def chunk_row(name: str, reply_to: str = "") -> EmitRow:
    chunk = Chunk(0, 0, (5,), "x").encode("json")
    return EmitRow(name, fence("w", 1, 0), fence("w", 1, 1), "1-0", "chunk", 1, "json", reply_to, chunk)


@pytest.mark.parametrize("spoil", ["ahead", "type"])
def test_a_flush_goes_through_for_every_row(broker: Broker, spoil: str) -> None:
    # Previously the whole flush failed, again and again, and all rows of the worker stood still.
    run_until_claimed(broker, "good", "spoilt")
    if spoil == "ahead":
        broker.client.xadd(broker.keys.out("spoilt"), {"json": "{}"}, id="999999-0")
    else:
        broker.client.set(broker.keys.out("spoilt"), "oops")
    emitted = broker.run(EmitCall([chunk_row("good"), chunk_row("spoilt")], broker.settings))
    assert emitted.refused == frozenset()
    for name in ("good", "spoilt"):
        assert [chunk.ids for chunk in broker.chunks_after(name, 0, 0)] == [(5,)]


def test_a_spoilt_reply_stream_does_not_cost_its_chunks(broker: Broker) -> None:
    run_until_claimed(broker, "asked", reply_to="box")
    broker.client.set(broker.keys.reply("box"), "oops")
    broker.run(EmitCall([chunk_row("asked", "box")], broker.settings))
    ((_, fields),) = broker.client.xrange(broker.keys.reply("box"))
    assert list(fields) == [b"asked"]


def test_a_poisoned_request_with_a_spoilt_result_is_buried_once(broker: Broker) -> None:
    # Previously every round of reap failed behind its entry in `dead`, and nothing was admitted any more.
    run_until_claimed(broker, "bad")
    broker.client.xadd(broker.keys.out("bad"), {"json": "{}"}, id="999999-0")
    keys = broker.keys
    broker.client.hset(keys.request("bad"), "strikes", broker.settings.max_strikes - 1)
    broker.client.zadd(keys.due, {"bad": 1})
    now_ms = broker.now_ms()
    broker.client.hset(keys.load, mapping={"reaped_at": now_ms, "amnesty_until": 0})
    assert broker.run(ReapCall(10, broker.settings)).num_dead == 1
    assert broker.run(ReapCall(10, broker.settings)).num_dead == 0
    assert broker.load()["dead"] == 1
    assert broker.load()["running"] == 0


def test_a_submission_for_a_tenant_that_nobody_serves_is_refused_by_name(broker: Broker) -> None:
    stream = RequestStream("normal", "t1")
    call = SubmitCall("t1:a", stream, "json", b"{}", 8, 60_000, "", broker.settings)
    with pytest.raises(InvalidRequestError, match="no scheduler of this queue serves t1") as refused:
        broker.run(call)
    assert refused.value.field == "tenant"
    assert broker.load()["queued"] == 0
    broker.serve_tenants([stream])
    broker.serve_tenants([stream])
    assert broker.run(call).verdict == "ok"
