"""``headrace status``: what a queue holds, and who works on it."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from headrace.broker import Broker, WorkerInfo
from headrace.cli.options import Json, Model, Port, Queue, RedisUrl, Set, load_settings
from headrace.config import Settings, redact
from headrace.keys import LANES, RequestStream

#: A worker that has been silent for so many leases is not listed.
_WORKER_LIFE_LEASES = 3


@dataclass(frozen=True, slots=True)
class Status:
    """One look at a queue.

    Attributes:
        redis_url: without its password.
        queue: its name.
        leader: the scheduler that works; "" if there is none.
        load: totals over live requests.
        streams: entries not admitted yet, by lane and tenant.
        workers: by their last heartbeat.
        now_ms: the server's clock.
    """

    redis_url: str
    queue: str
    leader: str
    load: dict[str, int]
    streams: dict[str, int]
    workers: tuple[WorkerInfo, ...]
    now_ms: int

    @classmethod
    def read(cls, broker: Broker, settings: Settings) -> "Status":
        """Ask the server; raises BrokerUnavailableError."""
        streams = [RequestStream(lane, tenant) for lane in LANES for tenant in ("", *settings.tenants)]
        return cls(
            redact(settings.redis_url),
            settings.queue_name,
            broker.leader(),
            broker.load(),
            broker.stream_lengths(streams),
            tuple(broker.workers(settings.lease_ms * _WORKER_LIFE_LEASES)),
            broker.now_ms(),
        )


def status(
    redis_url: RedisUrl = None,
    port: Port = None,
    model: Model = None,
    queue: Queue = None,
    json_: Json = False,
    set_: Set = None,
) -> None:
    """Show what waits, what runs, and who works."""
    settings = load_settings(set_, redis_url=redis_url, port=port, model=model, queue=queue)
    broker = Broker.connect(settings)
    found = Status.read(broker, settings)
    broker.close()
    if json_:
        print(json.dumps(asdict(found)))
    else:
        print("\n".join(_lines(found)))


def _lines(found: Status) -> list[str]:
    load = found.load
    lines = [
        f"{found.redis_url}  queue {found.queue}  scheduler {found.leader or 'none'}",
        f"queued   {load['queued']:>8} requests {load['queued_tokens']:>10} tokens",
        f"running  {load['running']:>8} requests {load['running_tokens']:>10} tokens",
        f"ready {load['ready']}, batches {load['batches']}, dead {load['dead']}",
    ]
    lines += [f"{suffix}: {length} not admitted yet" for suffix, length in found.streams.items() if length]
    if not found.workers:
        lines.append("no worker")
    for worker in found.workers:
        age_s = max(0, found.now_ms - worker.seen_ms) / 1000
        lines.append(f"worker {worker.worker}  {age_s:.1f} s ago  {_details(worker.details)}")
    return lines


def _details(details: Any) -> str:
    return "  ".join(f"{name} {value}" for name, value in details.items())
