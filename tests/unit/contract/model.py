"""The contract in the fewest words: what each move answers, and what state it leaves, without clocks, costs or text.

Leases end when a test says so (``due``), so that a run can be repeated; everything else follows from the calls alone.
"""

from dataclasses import dataclass

from headrace.moves import (
    Admission,
    AdmitCall,
    Call,
    CancelCall,
    ClaimCall,
    Claimed,
    DispatchCall,
    Dispatched,
    EmitCall,
    EmitRow,
    Emitted,
    Reaped,
    RememberCall,
    SubmitCall,
    Submitted,
)

BACKLOG = ("submitted", "queued", "batched")
LIVE = (*BACKLOG, "running", "forked")


@dataclass
class Known:
    """A request, or a tombstone."""

    state: str
    entry: str = ""
    owner: str = ""
    epoch: int = 0
    n: int = 0
    n0: int = 0
    strikes: int = 0
    batch: str = ""
    due: bool = False
    parent: "Known | None" = None
    num_open: int = 0

    @property
    def at(self) -> str:
        return f"{self.owner}:{self.epoch}:{self.n}"

    def become(self, state: str) -> None:
        self.state, self.owner, self.due = state, "", False
        if state == "done" and self.parent is not None and self.parent.state == "forked":
            self.parent.num_open -= 1
            if self.parent.num_open == 0:
                self.parent.become("done")


class Model:
    """What a queue must be after the calls so far."""

    def __init__(self, max_queued: int, max_backlog: int, max_strikes: int) -> None:
        self.max_queued, self.max_backlog, self.max_strikes = max_queued, max_backlog, max_strikes
        self.known: dict[str, Known] = {}
        self.lane: dict[str, tuple[str, str]] = {}
        self.batches: dict[str, tuple[tuple[str, ...], bool]] = {}
        self.nonces: dict[str, tuple[int, tuple[str, ...]]] = {}
        self.kept: dict[str, int] = {}

    def check(self, call: Call[object], reply: object) -> None:
        """Apply a call, and compare the answer to it."""
        match call, reply:
            case SubmitCall(), Submitted():
                assert reply.verdict == self._submit(call.request_id, reply.detail)
            case AdmitCall(), list():
                assert reply == [self._admit(a) for a in call.admissions]
            case RememberCall(), bool():
                assert reply
                self.kept[call.key] = call.num_tokens
            case DispatchCall(), Dispatched():
                self._dispatch(call, reply)
            case ClaimCall(), Claimed():
                expected = [(i, self.known[i].epoch, self.known[i].n) for i in self._claim(call)]
                assert [(row.request_id, row.epoch, row.num_tokens) for row in reply.rows] == expected
            case EmitCall(), Emitted():
                assert reply.refused == {row.request_id for row in call.rows if not self._emit(row)}
            case CancelCall(), str():
                assert reply == self._cancel(call.request_id)
            case _, Reaped():
                assert (reply.num_requeued, reply.num_dead) == self._reap()
                assert not reply.amnesty
            case _:
                raise AssertionError(f"{call} answered {reply}")

    def _num_queued(self) -> int:
        return sum(k.state in BACKLOG for k in self.known.values())

    def _submit(self, request_id: str, entry: str) -> str:
        k = self.known.get(request_id)
        if k is not None and k.state == "tomb":
            k.become("done")
            return "cancelled"
        if k is not None:
            return "known"
        if self._num_queued() >= self.max_queued:
            return "overloaded"
        self.known[request_id] = Known("submitted", entry)
        self.lane[entry] = ("request", request_id)
        return "ok"

    def _admit(self, admission: Admission) -> str:
        entry, num_results, key = admission.entry, admission.num_results, admission.cache_key
        if entry not in self.lane:
            return "gone"
        kind, request_id = self.lane.pop(entry)
        k = self.known.get(request_id)
        if kind == "cancel":
            self._cancel(request_id)
            return "cancelled"
        if k is not None and k.state == "tomb":
            k.become("done")
            return "cancelled"
        if k is not None and k.entry == entry and k.state == "submitted":
            return self._answer(k, key) or self._enqueue(request_id, k, num_results)
        if k is not None:
            return "duplicate"
        k = self.known[request_id] = Known("done", entry)
        if answered := self._answer(k, key):
            return answered
        if self._num_queued() + num_results > self.max_queued:
            return "overloaded"
        return self._enqueue(request_id, k, num_results)

    def _answer(self, k: Known, key: str) -> str:
        if key not in self.kept:
            return ""
        k.become("done")
        k.n = self.kept[key]
        return "cached"

    def _enqueue(self, request_id: str, k: Known, num_results: int) -> str:
        if num_results == 1:
            k.become("queued")
            return "queued"
        k.become("forked")
        k.num_open = num_results
        children = [f"{request_id}/{index}" for index in range(num_results)]
        withdrawn = [child for child in children if child in self.known]
        for child in children:
            self.known[child] = Known("queued", parent=k)
        for child in withdrawn:
            self.known[child].become("done")
        return "queued"

    def _cancel(self, request_id: str) -> str:
        k = self.known.get(request_id)
        if k is None:
            self.known[request_id] = Known("tomb")
            return "unknown"
        state = k.state
        if state == "forked":
            for child in [c for c in self.known.values() if c.parent is k and c.state in LIVE]:
                child.become("done")
        elif state in LIVE:
            if state == "submitted":
                self.lane.pop(k.entry, None)
            k.become("done")
        return state

    def _dispatch(self, call: DispatchCall, reply: Dispatched) -> None:
        assert reply.full == (len(self.batches) >= self.max_backlog)
        if reply.full:
            return
        ids = tuple(dict.fromkeys(call.request_ids))
        alone = len(call.request_ids) == 1
        ready = {i: k for i in ids if (k := self.known.get(i)) and k.state == "queued" and (alone or not k.strikes)}
        assert reply.left == tuple(i for i in ids if i not in ready)
        assert bool(reply.entry) == bool(ready)
        if ready:
            self.batches[reply.entry] = (tuple(ready), any(k.strikes for k in ready.values()))
        for k in ready.values():
            k.become("batched")
            k.batch = reply.entry

    def _claim(self, call: ClaimCall) -> list[str]:
        nonce, ids = self.nonces.get(call.worker, (-1, ()))
        if nonce > call.nonce:
            return []
        if nonce < call.nonce:
            ids = self._take(call)
        return [i for i in ids if self.known[i].state == "running" and self.known[i].owner == call.worker]

    def _take(self, call: ClaimCall) -> tuple[str, ...]:
        for entry, (members, solo) in list(self.batches.items()):
            run = tuple(i for i in members if self.known[i].state == "batched" and self.known[i].batch == entry)
            if run and len(run) > call.max_rows:
                continue
            if len(run) > call.free_rows or (run and solo and call.num_unproven):
                return ()
            del self.batches[entry]
            if run:
                for k in (self.known[i] for i in run):
                    k.become("running")
                    k.owner, k.epoch, k.n0 = call.worker, k.epoch + 1, k.n
                self.nonces[call.worker] = (call.nonce, run)
                return run
        return ()

    def _emit(self, row: EmitRow) -> bool:
        k = self.known[row.request_id]
        if k.at != row.prev:
            again = k.at == row.next and row.verb == "chunk"
            k.due = k.due and not again
            return again
        k.due = False
        k.n = int(row.next.rpartition(":")[2])
        if row.verb in ("yield", "lost"):
            self._requeue(k, row.verb == "lost")
        elif row.verb not in ("chunk", "renew"):
            k.become("done")
        return True

    def _requeue(self, k: Known, struck: bool) -> str:
        if k.state == "running" and k.n > k.n0:
            k.strikes = 0
        elif struck:
            k.strikes += 1
        k.become("done" if struck and k.strikes >= self.max_strikes else "queued")
        return k.state

    def _reap(self) -> tuple[int, int]:
        fates = []
        for k in self.known.values():
            if k.due and k.state in ("running", "batched"):
                if k.state == "batched":
                    self.batches.pop(k.batch, None)
                fates.append(self._requeue(k, k.state == "running"))
            elif k.due and k.state == "submitted" and k.entry not in self.lane:
                k.become("done")
                fates.append("done")
            k.due = False
        return fates.count("queued"), fates.count("done")
