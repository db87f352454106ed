"""Producers, a scheduler and workers on a bad network: calls are lost after they ran, sent twice, and sent late.

Every answer is compared with the model's, whoever asked and however often.
"""

import re
from dataclasses import replace
from typing import TypeVar

from tests.unit.contract.actors import NORMAL, PROMPT_TOKENS, Actors, Holding
from tests.unit.contract.audit import check
from tests.unit.contract.model import LIVE, Model

from headrace.broker import Broker
from headrace.moves import (
    Admission,
    AdmitCall,
    Call,
    CancelCall,
    ClaimCall,
    DispatchCall,
    EmitCall,
    EmitRow,
    ReapCall,
    RememberCall,
    SubmitCall,
    Verb,
)
from headrace.wire import Chunk, Done, Encoding, Usage

T = TypeVar("T")

#: Longer than any run: results stay, and leases end when told to.
FOREVER_MS = 3_600_000
WORKERS = ("w0", "w1", "w2")


def num_results(request_id: str) -> int:
    """Every fifth request, by its name, asks for two results."""
    return 2 if re.fullmatch(r"r[0-9]*[49]", request_id) else 1


def cache_key(admission: Admission) -> str:
    """Of two of five requests, which ask the same."""
    return f"same-{admission.encoding}" if re.fullmatch(r"r[0-9]*[27]", admission.request_id) else ""


class Fleet:
    """Drives one queue; ``audit`` compares all of it with the model."""

    def __init__(self, broker: Broker) -> None:
        self.actors = Actors(broker)
        self.actors.limit(lease_ms=FOREVER_MS, max_queued_requests=12, max_backlog_batches=3)
        self.model = Model(12, 3, self.actors.settings.max_strikes)
        self.history: list[Call[object]] = []
        self.holdings: dict[str, dict[str, Holding]] = {worker: {} for worker in WORKERS}
        self.unanswered: dict[str, ClaimCall | EmitCall] = {}

    def send(self, call: Call[T]) -> T:
        """Send a call, compare its answer, and remember it for later."""
        if call.move == "reap":
            self.actors.no_amnesty()
        reply = self.actors.broker.run(call)
        self.model.check(call, reply)
        self.history.append(call)
        return reply

    def again(self, index: int) -> None:
        """An old call arrives once more."""
        self.send(self.history[index])
        self.history.pop()

    # Producers

    def submit(self, request_id: str) -> None:
        self.send(SubmitCall(request_id, NORMAL, "mp", b"", 10, FOREVER_MS, "r", self.actors.settings))

    def xadd(self, request_id: str) -> None:
        self.model.lane[self.actors.xadd(request_id)] = ("request", request_id)

    def xadd_cancel(self, request_id: str) -> None:
        self.model.lane[self.actors.xadd_cancel(request_id)] = ("cancel", request_id)

    def cancel(self, request_id: str) -> None:
        self.send(CancelCall(request_id, self.actors.settings))

    # The scheduler

    def admit(self, count: int) -> None:
        judged = self.actors.judged(ttl_ms=FOREVER_MS)[:count]
        admissions = [replace(a, num_results=num_results(a.request_id), cache_key=cache_key(a)) for a in judged]
        self.send(AdmitCall(NORMAL, admissions, self.actors.settings))

    def dispatch(self, request_ids: list[str]) -> None:
        self.send(DispatchCall(request_ids, self.actors.settings))

    def remember(self, num_tokens: int, encoding: Encoding) -> None:
        """An answer is kept, in the place of the one before."""
        text = "".join(f"<{i}>" for i in range(num_tokens))
        chunk = Chunk(0, 0, tuple(range(num_tokens)), text, Done("stop", Usage(PROMPT_TOKENS, num_tokens)))
        settings = self.actors.settings.model_copy(update={"cache_entries": 2})
        data = chunk.encode(encoding)
        self.send(RememberCall(f"same-{encoding}", num_tokens, len(text), "stop", data, settings))

    def time_passes(self, request_ids: list[str]) -> None:
        """The moment comes at which reap must look at these; it looks with the next ``reap``."""
        self.actors.make_due(*request_ids)
        for request_id in request_ids:
            if request_id in self.model.known and self.model.known[request_id].state in LIVE:
                self.model.known[request_id].due = True

    def reap(self) -> None:
        self.send(ReapCall(10_000, self.actors.settings))

    # Workers: one that had no answer sends the same again, and does not know what it missed

    def claim(self, worker: str, room: int, lost: bool) -> None:
        call = self.unanswered.pop(worker, None)
        if not isinstance(call, ClaimCall):
            held = self.holdings[worker].values()
            unproven = sum(h.num_tokens == h.claimed.num_tokens for h in held)
            call = replace(self.actors.claim_call(worker), free_rows=room, max_rows=4, num_unproven=unproven)
        claimed = self.send(call)
        if lost:
            self.unanswered[worker] = call
            return
        self.holdings[worker] |= {row.request_id: Holding(row, worker) for row in claimed.rows}

    def emit(self, worker: str, verbs: dict[str, tuple[Verb, int]], lost: bool) -> None:
        call = self.unanswered.pop(worker, None)
        if not isinstance(call, EmitCall):
            held = self.holdings[worker]
            rows = [held[i].emit(verb, num_new) for i, (verb, num_new) in verbs.items() if i in held]
            call = EmitCall(rows, self.actors.settings)
        answer = self.send(call)
        if lost:
            self.unanswered[worker] = call
            return
        for row in call.rows:
            self._settle(worker, row, row.request_id in answer.refused)

    def _settle(self, worker: str, row: EmitRow, refused: bool) -> None:
        held = self.holdings[worker]
        if refused or row.verb not in ("chunk", "renew"):
            held.pop(row.request_id, None)
        elif row.request_id in held:
            held[row.request_id].written(row)

    # What must hold

    def audit(self) -> None:
        """Compare every request and every total with the model and with a recount."""
        hashes = check(self.actors.broker)
        assert {i: h["state"] for i, h in hashes.items()} == {i: k.state for i, k in self.model.known.items()}
        for request_id, k in self.model.known.items():
            if k.state != "tomb":
                assert hashes[request_id]["at"] == k.at
                assert k.state == "done" or int(hashes[request_id]["strikes"]) == k.strikes

    def drain(self) -> None:
        """Bring every request to its end; then nothing may be left of them but results."""
        self.unanswered.clear()
        for _ in range(100):
            live = sorted(i for i, k in self.model.known.items() if k.state in LIVE)
            if not live and not self.model.lane:
                break
            self.time_passes(live)
            self.reap()
            self.admit(64)
            for request_id in live:
                self.dispatch([request_id])
            self.claim("w0", 4, lost=False)
            for worker in WORKERS:
                ends: dict[str, tuple[Verb, int]] = dict.fromkeys(self.holdings[worker], ("stop", 1))
                self.emit(worker, ends, lost=False)
        self.audit()
        load = self.actors.broker.load()
        del load["dead"], load["batches"]
        assert not any(load.values()), f"left over: {load}"
        assert not self.actors.client.keys("hr:{test}:job:*")
