"""Taking stock: a queue counted again from its requests, compared with its totals, and searched for what has leaked.

A count takes many commands while the queue moves on, so whatever looks wrong is looked at a second time,
and totals are compared only if none has changed while the requests were counted.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from headrace.broker import Broker
from headrace.connection import translated
from headrace.errors import ConfigurationError
from headrace.keys import LANES, RequestStream
from headrace.moves import TOTALS, RecountCall

_LIVE = ("submitted", "queued", "batched", "running", "forked")
_WAITING = ("submitted", "queued", "batched")
_PAGE_KEYS = 500
#: Of a key that is named like a request and is no hash.
_SPOILT = "spoilt"
_MAX_COUNTS = 3
#: A worker that has been silent for so many leases is not counted.
_WORKER_LIFE_LEASES = 3


@dataclass(frozen=True, slots=True)
class _Counted:
    """What is counted of one request; ``ttl_ms`` is -1 where it has none."""

    state: str
    lane: str
    cost_tokens: int
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class Stock:
    """What is in a queue.

    Attributes:
        queue: its name.
        states: requests by state, those that have ended among them while their results live.
        waiting: requests that wait for a worker, by lane.
        not_admitted: entries that the scheduler has not read yet, by stream.
        running: requests that a worker computes.
        dead: requests given up as poison.
        batches: batches that no worker has taken.
        workers: that are alive.
        totals: what the queue says of its live requests: ``queued``, ``running``, and the tokens of each.
        recount: the same, counted from the requests.
        settled: the totals stood still while the requests were counted; if not, the two say nothing about each other.
        leaks: a sentence for everything that would stay for ever, or that nobody would look at again.
    """

    queue: str
    states: Mapping[str, int]
    waiting: Mapping[str, int]
    not_admitted: Mapping[str, int]
    running: int
    dead: int
    batches: int
    workers: int
    totals: Mapping[str, int]
    recount: Mapping[str, int]
    settled: bool
    leaks: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Nothing has leaked, and the totals are right as far as can be told."""
        return not self.leaks and (not self.settled or self.totals == self.recount)


def take_stock(broker: Broker) -> Stock:
    """Count a queue. It costs the server a few commands a request.

    Raises:
        BrokerUnavailableError: no server answers.
        ConfigurationError: this user may not SCAN.
    """
    settings = broker.settings
    streams = [RequestStream(lane, tenant) for lane in LANES for tenant in ("", *settings.tenants)]
    for _ in range(_MAX_COUNTS):
        before = broker.load()
        requests = dict(_requests(broker))
        load = broker.load()
        settled = all(before[name] == load[name] for name in TOTALS)
        if settled:
            break
    return Stock(
        settings.queue_name,
        dict(Counter(request.state for request in requests.values())),
        {lane: sum(r.state in _WAITING and r.lane == lane for r in requests.values()) for lane in LANES},
        broker.stream_lengths(streams),
        sum(request.state == "running" for request in requests.values()),
        load["dead"],
        load["batches"],
        len(broker.living.workers(settings.lease_ms * _WORKER_LIFE_LEASES)),
        {name: load[name] for name in TOTALS},
        _recount(requests),
        settled,
        tuple(_leaks(broker, requests)),
    )


def repair_totals(broker: Broker) -> Stock:
    """Put wrong totals right, if two counts of a queue that stands still agree; return the stock that then is.

    Who deletes a live request's hash takes the knowledge of what it counted for with it: limits, and what schedulers
    believe of workers' memory, would be wrong for ever.

    Raises:
        BrokerUnavailableError: no server answers.
        ConfigurationError: this user may not SCAN, or the queue does not stand still.
    """
    once, again = take_stock(broker), take_stock(broker)
    stood_still = once.settled and again.settled and (once.totals, once.recount) == (again.totals, again.recount)
    if stood_still and again.totals == again.recount:
        return again
    if not stood_still or not broker.run(RecountCall(again.totals, again.recount)):
        raise ConfigurationError(
            f"queue {again.queue} did not stand still while it was counted: repair it when nothing is asked of it"
        )
    return take_stock(broker)


def _recount(requests: Mapping[str, _Counted]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for request in requests.values():
        kind = "running" if request.state == "running" else "queued" if request.state in _WAITING else ""
        if kind:
            found[kind] += 1
            found[f"{kind}_tokens"] += request.cost_tokens
    return {name: found[name] for name in TOTALS}


def _leaks(broker: Broker, requests: Mapping[str, _Counted]) -> Iterator[str]:
    """What looks wrong twice."""
    keys, client = broker.keys, broker.client

    def unwatched(request_id: str) -> bool:
        return _state(broker, request_id) in _LIVE and client.zscore(keys.due, request_id) is None

    def not_ready(request_id: str) -> bool:
        return _state(broker, request_id) == "queued" and client.zscore(keys.ready, request_id) is None

    def immortal(request_id: str) -> bool:
        # A child's result lives as long as its parent's, which may still run.
        parent = request_id.partition("/")[0]
        if parent != request_id and _state(broker, parent) in _LIVE:
            return False
        return _state(broker, request_id) in ("done", "tomb") and client.pttl(keys.request(request_id)) == -1

    def ghost(key: str) -> Callable[[str], bool]:
        return lambda request_id: client.zscore(key, request_id) is not None and not _state(broker, request_id)

    def orphan(key: Callable[[str], str]) -> Callable[[str], bool]:
        return lambda request_id: not _state(broker, request_id) and client.pttl(key(request_id)) == -1

    with translated(broker.settings):
        due, ready = (_members(broker, key) for key in (keys.due, keys.ready))
        jobs, results = (_names(broker, key("")) for key in (keys.job, keys.out))
        suspects: Sequence[tuple[str, list[str], Callable[[str], bool]]] = (
            ("{} lives, and nothing will look at it again: it is not in due",
             [i for i, r in requests.items() if r.state in _LIVE and i not in due], unwatched),
            ("{} is queued, and no batch will have it: it is not in ready",
             [i for i, r in requests.items() if r.state == "queued" and i not in ready], not_ready),
            ("{} has ended, and its hash has no time to live",
             [i for i, r in requests.items() if r.state in ("done", "tomb") and r.ttl_ms == -1], immortal),
            ("{} is no request: somebody has put something else in its place",
             [i for i, r in requests.items() if r.state == _SPOILT], lambda _: True),
            ("{} is in due without a request", [i for i in due if i not in requests], ghost(keys.due)),
            ("{} is in ready without a request", [i for i in ready if i not in requests], ghost(keys.ready)),
            ("the job of {} is there without a request", [i for i in jobs if i not in requests], orphan(keys.job)),
            ("the result of {} is there for ever without a request",
             [i for i in results if i not in requests], orphan(keys.out)),
        )  # fmt: skip
        for sentence, ids, is_wrong in suspects:
            yield from (sentence.format(request_id) for request_id in sorted(ids) if is_wrong(request_id))


def _state(broker: Broker, request_id: str) -> str:
    found = broker.client.hget(broker.keys.request(request_id), "state")
    return _text(found) if found else ""


def _requests(broker: Broker) -> Iterator[tuple[str, _Counted]]:
    """All requests there are, a page of them a round trip."""
    with translated(broker.settings):
        names = iter(_names(broker, broker.keys.request("")))
        while page := list(islice(names, _PAGE_KEYS)):
            pipe = broker.client.pipeline(transaction=False)
            for request_id in page:
                pipe.hmget(broker.keys.request(request_id), "state", "lane", "cost")
                pipe.pttl(broker.keys.request(request_id))
            replies = pipe.execute(raise_on_error=False)
            for request_id, values, ttl_ms in zip(page, replies[::2], replies[1::2], strict=True):
                if not isinstance(values, list):
                    yield request_id, _Counted(_SPOILT, "", 0, int(ttl_ms))
                    continue
                state, lane, cost = (_text(value or b"") for value in values)
                if state:  # it may have expired since
                    yield request_id, _Counted(state, lane, int(cost) if cost.isdecimal() else 0, int(ttl_ms))


def _names(broker: Broker, prefix: str) -> set[str]:
    """What follows a prefix in the names of keys; SCAN may tell one twice."""
    found = broker.client.scan_iter(prefix + "*", count=_PAGE_KEYS)
    return {_text(name).removeprefix(prefix) for name in found}


def _members(broker: Broker, key: str) -> set[str]:
    return {_text(member) for member in broker.client.zrange(key, 0, -1)}


def _text(name: bytes) -> str:
    """Ours are UTF-8; what others wrote must not end the count."""
    return name.decode(errors="replace")
