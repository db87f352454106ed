"""Requests of every kind, a worker that computes nothing, and what must be true once all have ended."""

import json
import time
from collections import Counter
from typing import Any

from tests.unit.contract.actors import Actors, Holding
from tests.unit.contract.audit import check

from headrace.keys import LANES, RequestStream
from headrace.moves import ClaimedRow, HeartbeatCall
from headrace.stock import take_stock
from headrace.workers.costs.table import CostTable

TENANT = "acme"
WORKER, WORKER_CLASS = "w1", "cpu/test"
STREAMS = [RequestStream(lane, tenant) for lane in LANES for tenant in ("", TENANT)]
#: Of one that is asked for many results, so that a slice of its lane is admitted in parts.
NUM_RESULTS = 34
INVALID: tuple[dict[str, Any], ...] = (
    {"prompt": 5},
    {},
    {"prompt": "one", "max_tokens": 1_000},
    {"prompt": "x", "q": 1},
)


class Worker:
    """Claims batches, streams a token a row at once and the last one a round later; remembers what it was given."""

    def __init__(self, actors: Actors) -> None:
        self.actors = actors
        self.claimed: list[str] = []
        self.batches: dict[str, list[str]] = {}
        self._held: list[Holding] = []

    def beat(self) -> None:
        """Say that it lives, and of which class it is."""
        info = {"max_rows": 64, "kv_tokens": 10_000, "num_rows": 0, "class": WORKER_CLASS}
        self.actors.broker.run(HeartbeatCall("worker", WORKER, json.dumps(info), 60_000, WORKER_CLASS))

    def work(self) -> None:
        """One round."""
        held, self._held = self._held, []
        if held:
            self.actors.emit(*(holding.emit("stop", 1) for holding in held))
        self.look()
        claimed = self.actors.claim(WORKER, worker_class=WORKER_CLASS)
        if claimed.rows:
            self.hold(claimed.rows)
            self.batches[claimed.batch] = [row.request_id for row in claimed.rows]

    def hold(self, rows: tuple[ClaimedRow, ...]) -> None:
        """Take rows over and stream a token of each."""
        self.claimed += [row.request_id for row in rows]
        holdings = [Holding(row, WORKER) for row in rows]
        flushed = [holding.emit("chunk", 1) for holding in holdings]
        refused = self.actors.emit(*flushed).refused
        for holding, row in zip(holdings, flushed, strict=True):
            if row.request_id not in refused:  # cancelled meanwhile
                holding.written(row)
                self._held.append(holding)

    def renew(self) -> None:
        """Keep what it holds, and do nothing else."""
        if self._held:
            self.actors.emit(*(holding.emit("renew") for holding in self._held))

    def look(self) -> None:
        """See that nobody is in two of the batches that wait."""
        entries = self.actors.client.xrange(self.actors.broker.keys.batches)
        ids = [name for _, fields in entries for name in fields[b"ids"].decode().split()]
        assert len(ids) == len(set(ids)), f"in two batches at a time: {ids}"


class MixedLoad:
    """What is asked of a queue, and how each request may end."""

    def __init__(self, actors: Actors) -> None:
        self.actors = actors
        self.worker = Worker(actors)
        self.expected: dict[str, set[str]] = {}
        self.lost: set[str] = set()

    def put(self) -> None:
        """Leave requests in every state: in streams, ready, in batches, at a worker, at a worker that is gone."""
        broker, client = self.actors.broker, self.actors.client
        self.worker.beat()
        table = CostTable.linear(1.0, 0.1, 64, 64).encode()
        client.hset(broker.keys.cost, mapping={WORKER_CLASS: table, "long/gone": table})
        client.zadd(broker.keys.classes, {"long/gone": 1})
        client.zadd(broker.keys.workers, {"ghost": 1})
        self.actors.no_amnesty()
        self.actors.running("lost", worker="gone")
        self.lost = {"lost"}
        self.worker.hold(tuple(holding.claimed for holding in self.actors.running("run0", "run1", worker=WORKER)))
        self.actors.dispatched("batched0", "batched1")
        self.actors.queued("ready0", "ready1")
        self._expect("stop", "lost", "run0", "run1", "batched0", "batched1", "ready0", "ready1")
        for stream in STREAMS:
            self._fill(stream)
        time.sleep(0.005)  # and deadlines of 1 ms are over
        self.actors.make_due("lost")

    def _fill(self, stream: RequestStream) -> None:
        prefix = f"{stream.tenant}:{stream.lane}-" if stream.tenant else f"{stream.lane}-"

        def ask(name: str, reasons: str, /, **fields: Any) -> str:
            request_id = prefix + name
            self.actors.client.xadd(
                self.actors.broker.keys.requests(stream),
                {"id": request_id, "json": json.dumps({"prompt": "one two", "max_tokens": 2, **fields})},
            )
            self._expect(reasons, request_id)
            return request_id

        self.actors.xadd_cancel(prefix + "tomb", stream)
        ask("tomb", "cancelled")
        for i in range(3):
            ask(f"plain{i}", "stop")
        ask("late", "expired", deadline_ms=1)
        ask("soon", "stop expired", deadline_ms=300)
        ask("relaxed", "stop", deadline_ms=600_000)
        self._children(ask("three", "stop", n=3), 3)
        if stream == RequestStream("bulk"):
            for i in range(2):
                self._children(ask(f"many{i}", "stop", n=NUM_RESULTS), NUM_RESULTS)
        ask("plain0", "stop")  # again
        for i, fields in enumerate(INVALID):
            entry = {"id": f"{prefix}invalid{i}", "json": json.dumps(fields)}
            self.actors.client.xadd(self.actors.broker.keys.requests(stream), entry)
            self._expect("error", f"{prefix}invalid{i}")
        if not stream.tenant:
            body = json.dumps({"prompt": "one", "max_tokens": 2}).encode()
            assert self.actors.submit(prefix + "sent", stream=stream, body=body).verdict == "ok"
            self._expect("stop", prefix + "sent")
        self.actors.xadd_cancel(ask("regretted", "cancelled stop"), stream)

    def _children(self, parent: str, number: int) -> None:
        self._expect("stop", *(f"{parent}/{k}" for k in range(number)))

    def _expect(self, reasons: str, *request_ids: str) -> None:
        self.expected |= {request_id: set(reasons.split()) for request_id in request_ids}

    def is_over(self) -> bool:
        """Let the worker work; say whether nothing is left to do."""
        self.worker.work()
        load = self.actors.broker.load()
        waiting = self.actors.broker.stream_lengths(STREAMS)
        return not any(load[name] for name in ("queued", "running", "ready", "batches")) and not any(waiting.values())

    def settled(self) -> None:
        """Every request has ended once and as it may, was dispatched and claimed once, and nothing is left behind."""
        hashes = check(self.actors.broker)
        found = {name: h["reason"] for name, h in hashes.items() if h["state"] == "done"}
        assert found.keys() == self.expected.keys()
        wrong = {name: reason for name, reason in found.items() if reason not in self.expected[name]}
        assert not wrong, f"ended otherwise than they may: {wrong}"
        for name, reason in found.items():
            done = self.actors.last(name).done
            assert done is not None
            assert done.reason == reason
            if reason == "error":
                assert done.error is not None
                assert done.error.code == "invalid", f"{name}: {done.error}"
        stock = take_stock(self.actors.broker)
        assert stock.settled
        assert stock.is_sound, stock
        self._not_twice(hashes)

    def _not_twice(self, hashes: dict[str, dict[str, str]]) -> None:
        times = Counter(self.worker.claimed)
        assert {name for name, count in times.items() if count > 1} == set()
        assert {name for name, h in hashes.items() if int(h["attempts"]) > 1} == self.lost
        # Whoever was in a batch says so; the log of batches says how many were, each time.
        num_dispatched = sum("t_dispatch" in h for h in hashes.values()) + len(self.lost)
        num_logged = sum(record.num_rows for record in self.actors.broker.costs.batch_log(100_000))
        assert num_logged == num_dispatched, f"{num_logged} rows in batches, of {num_dispatched} requests"
