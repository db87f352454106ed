"""What must hold of a queue between any two moves, checked from outside by counting everything again."""

from collections import Counter
from typing import Any

from headrace.broker import Broker
from headrace.wire import Chunk

LIVE = ("submitted", "queued", "batched", "running", "forked")


def check(broker: Broker) -> dict[str, dict[str, str]]:
    """Count a queue again and compare; return the hash of every request there is."""
    client, keys = broker.client, broker.keys
    names = [name.decode() for name in client.scan_iter(keys.prefix + "request:*", count=1000)]
    hashes = {name.removeprefix(keys.prefix + "request:"): _texts(client.hgetall(name)) for name in names}
    ready, due = _scores(client, keys.ready), _scores(client, keys.due)
    batched = {i for _, f in client.xrange(keys.batches) for i in f[b"ids"].decode().split()}
    totals: Counter[str] = Counter()
    for request_id, h in hashes.items():
        state = h["state"]
        if state == "tomb":
            assert set(h) <= {"v", "state"}, f"{request_id}: a tombstone is nothing but one"
            assert client.pttl(keys.request(request_id)) > 0
            continue
        family = request_id.partition("/")[0]
        owner, epoch, n = h["at"].split(":")
        chunks = _result(client, keys.out(request_id))
        last = chunks[-1] if chunks else None
        assert int(n) == sum(len(chunk.ids) for chunk in chunks), f"{request_id}: `at` counts the published tokens"
        assert int(h["o"]) == sum(len(chunk.text) for chunk in chunks), f"{request_id}: `o` counts published text"
        if state == "done":
            assert last is not None, f"{request_id}: done without a terminal chunk"
            assert last.done is not None, f"{request_id}: done without a terminal chunk"
            assert last.done.reason == h["reason"]
            # A child's result lives as long as its parent's.
            expires = request_id == family or hashes[family]["state"] == "done"
            assert (client.pttl(keys.request(request_id)) > 0) == expires
            assert (client.pttl(keys.out(request_id)) > 0) == expires
            assert request_id != family or not client.exists(keys.job(request_id))
        else:
            assert state in LIVE
            assert last is None or last.done is None, f"{request_id}: {state} behind a terminal chunk"
            assert client.pttl(keys.request(request_id)) == -1, f"{request_id}: a live request never expires"
            assert client.exists(keys.job(family)) == (state != "submitted")
            if state == "forked":
                children = [hashes[f"{request_id}/{index}"]["state"] for index in range(int(h["children"]))]
                assert int(h["open"]) == sum(child in LIVE for child in children) > 0
            else:
                kind = "running" if state == "running" else "queued"
                totals[kind] += 1
                totals[kind + "_tokens"] += int(h["cost"])
        assert request_id == family or not client.exists(keys.job(request_id)), "children share their parent's job"
        assert (owner != "") == (state == "running"), f"{request_id}: owned by {owner!r} while {state}"
        assert (request_id in ready) == (state == "queued"), f"{request_id}: {state}, ready: {request_id in ready}"
        assert (request_id in due) == (state in LIVE), f"{request_id}: {state}, due: {request_id in due}"
        assert int(epoch) >= int(h["attempts"] or 0) or state == "done"
        assert state != "queued" or ready[request_id] == float(h["score"])
    assert set(ready) <= set(hashes)
    assert set(due) <= set(hashes), f"due without a request: {set(due) - set(hashes)}"
    assert batched >= {i for i, h in hashes.items() if h["state"] == "batched" and h["batch"] in _entries(broker)}
    load = broker.load()
    for name in ("queued", "queued_tokens", "running", "running_tokens"):
        assert load[name] == totals[name], f"{name} is {load[name]}, a recount gives {totals[name]}"
    return hashes


def _result(client: Any, name: str) -> list[Chunk]:
    """A result stream's chunks, seen to be contiguous, rightly numbered and ended at most once."""
    chunks: list[Chunk] = []
    tokens = chars = 0
    for entry, fields in client.xrange(name):
        ((encoding, data),) = fields.items()
        chunk = Chunk.decode(data)
        if chunk.is_head:
            assert (entry, chunks) == (b"0-1", []), f"{name}: a head as entry {entry!r}"
            continue
        assert (encoding == b"json") == data.startswith(b"{")
        assert not chunks or chunks[-1].done is None, f"{name}: a chunk behind the terminal one"
        assert (chunk.i, chunk.o) == (tokens, chars), f"{name}: {chunk} does not continue {tokens} tokens"
        tokens, chars = tokens + len(chunk.ids), chars + len(chunk.text)
        assert chunk.ids == tuple(range(chunk.i, tokens)), f"{name}: tokens are repeated or lost"
        assert entry.decode() == f"{tokens}-{0 if chunk.ids else 2}", f"{name}: entry {entry!r} for {tokens} tokens"
        assert chunk.ids or chunk.done
        chunks.append(chunk)
    return chunks


def _entries(broker: Broker) -> set[str]:
    return {entry.decode() for entry, _ in broker.client.xrange(broker.keys.batches)}


def _scores(client: Any, name: str) -> dict[str, float]:
    return {member.decode(): score for member, score in client.zrange(name, 0, -1, withscores=True)}


def _texts(fields: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}
