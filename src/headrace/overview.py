"""One look at a queue: what waits in which lane and since when, what runs, who works, what batches cost. Reads only.

``headrace status``, ``headrace top`` and the scheduler's metrics show it. It costs the server the same few commands
however much is in the queue: of a long queue's ready requests a random sample is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.batch_log import BatchRecord
from headrace.broker import Broker
from headrace.connection import translated
from headrace.heartbeat import Heartbeat, WorkerInfo
from headrace.keys import LANES, Lane, RequestStream

#: Ready requests whose lanes and times are read at most.
SAMPLE_REQUESTS = 2_000
_LANES = frozenset(lane.encode() for lane in LANES)
#: A process that has been silent for so many leases is not shown.
_LIFE_LEASES = 3


@dataclass(frozen=True, slots=True)
class LaneLook:
    """What waits in one lane, those of all tenants together.

    Attributes:
        lane: its name.
        num_new: entries that no scheduler has read yet.
        num_ready: admitted requests that wait for a batch; an estimate where ``Overview.is_sampled``.
        oldest_wait_ms: of the entries and the ready requests that were looked at; None where nothing waits.
    """

    lane: Lane
    num_new: int
    num_ready: int
    oldest_wait_ms: int | None


@dataclass(frozen=True, slots=True)
class Overview:
    """One look at a queue.

    Attributes:
        queue: its name.
        now_ms: the server's clock.
        leader: the scheduler that holds the lease; "" if there is none, or it is late to renew.
        load: totals over live requests, and how many are ready, in batches and dead.
        streams: entries not admitted yet, by lane and tenant.
        lanes: every lane.
        is_sampled: more were ready than were looked at.
        schedulers: with a recent heartbeat, those that stand by among them.
        workers: with a recent heartbeat.
        batches: the newest ones, newest first.
    """

    queue: str
    now_ms: int
    leader: str
    load: dict[str, int]
    streams: dict[str, int]
    lanes: tuple[LaneLook, ...]
    is_sampled: bool
    schedulers: tuple[Heartbeat, ...]
    workers: tuple[WorkerInfo, ...]
    batches: tuple[BatchRecord, ...]

    @property
    def leadership(self) -> str:
        """Who leads, in words; a leader that is late to renew its lease works all the same, and is named."""
        if self.leader or not self.schedulers:
            return self.leader or "none"
        names = ", ".join(sorted(beat.name for beat in self.schedulers))
        return f"none has renewed its lease within a second, alive: {names}"

    @property
    def tokens_per_s(self) -> float:
        """That all workers published of late, together."""
        return sum(worker.tokens_per_s for worker in self.workers)


def look(broker: Broker, num_batches: int) -> Overview:
    """Look at a broker's queue, and at its ``num_batches`` newest batches.

    Raises:
        BrokerUnavailableError: no server answers.
    """
    settings = broker.settings
    streams = [RequestStream(lane, tenant) for lane in LANES for tenant in ("", *settings.tenants)]
    life_ms = settings.lease_ms * _LIFE_LEASES
    lengths, load, now_ms = broker.stream_lengths(streams), broker.load(), broker.now_ms()
    sample = _sample_ready(broker)
    return Overview(
        settings.queue_name,
        now_ms,
        broker.leadership.holder(),
        load,
        lengths,
        tuple(_lane(broker, lane, streams, lengths, sample, load["ready"], now_ms) for lane in LANES),
        load["ready"] > SAMPLE_REQUESTS,
        tuple(broker.living.heartbeats("scheduler", life_ms)),
        tuple(broker.living.seen_workers(life_ms)),
        tuple(broker.costs.batch_log(num_batches) if num_batches else ()),
    )


def _lane(
    broker: Broker,
    lane: Lane,
    streams: Sequence[RequestStream],
    lengths: dict[str, int],
    sample: list[tuple[str, int]],
    num_ready: int,
    now_ms: int,
) -> LaneLook:
    own = [stream for stream in streams if stream.lane == lane]
    since_ms = [submitted_ms for found, submitted_ms in sample if found == lane]
    # Of a sample, each request stands for so many.
    share = max(1.0, num_ready / len(sample)) if sample else 0.0
    num_ready_here = round(len(since_ms) * share)
    num_new = sum(lengths[stream.suffix] for stream in own)
    if num_new:
        since_ms += [int(entries[0].id.partition("-")[0]) for entries in broker.oldest_requests(own, 1) if entries]
    return LaneLook(lane, num_new, num_ready_here, max(0, now_ms - min(since_ms)) if since_ms else None)


def _sample_ready(broker: Broker) -> list[tuple[str, int]]:
    """Lane and time (ms) of up to ``SAMPLE_REQUESTS`` ready requests: all, or any."""
    with translated(broker.settings):
        ids = broker.client.zrandmember(broker.keys.ready, SAMPLE_REQUESTS)
        pipe = broker.client.pipeline(transaction=False)
        for request_id in ids:
            pipe.hmget(broker.keys.request(request_id.decode(errors="replace")), "lane", "t_submit")
        replies = pipe.execute(raise_on_error=False)
    # What is no request's hash is left out: anybody may have put an id into the set.
    found = [reply for reply in replies if isinstance(reply, list)]
    return [(lane.decode(), int(since)) for lane, since in found if lane in _LANES and since and since.isdigit()]
