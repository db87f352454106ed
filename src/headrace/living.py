"""Which processes of a queue live, and what they last said of themselves."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from headrace.config import Settings
from headrace.connection import now_ms, translated
from headrace.faults import fault_point
from headrace.keys import Keys, ProcessKind
from headrace.moves import Beat, HeartbeatCall


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker's last heartbeat."""

    worker: str
    seen_ms: int
    max_rows: int
    kv_tokens: int
    num_rows: int
    details: Mapping[str, Any]

    @property
    def worker_class(self) -> str:
        """Workers of one class cost the same; "" where it says nothing."""
        return str(self.details.get("class", ""))


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a process last said of itself: when, by the server's clock, and what."""

    name: str
    seen_ms: int
    details: Mapping[str, Any]


def read_worker(worker: str, seen_ms: float, info: bytes) -> WorkerInfo:
    """A heartbeat from its JSON."""
    details = json.loads(info)
    return WorkerInfo(
        worker, int(seen_ms), int(details["max_rows"]), int(details["kv_tokens"]), int(details["num_rows"]), details
    )


class Living:
    """The part of a ``Broker`` that deals with heartbeats.

    All methods raise BrokerUnavailableError when the server cannot be reached.
    """

    def __init__(self, client: redis.Redis, settings: Settings, run: Callable[[HeartbeatCall], Beat]) -> None:
        # Any: as in Broker.
        self._client: Any = client
        self._settings = settings
        self._keys = Keys(settings.queue_name)
        self._run = run

    def workers(self, max_age_ms: int) -> list[WorkerInfo]:
        """Workers whose last heartbeat is at most so old; older ones are forgotten."""
        oldest = now_ms(self._client, self._settings) - max_age_ms
        fault_point("workers.timed")
        with translated(self._settings):
            self._client.zremrangebyscore(self._keys.workers, "-inf", oldest)
            fault_point("workers.forgotten")
            seen = self._client.zrange(self._keys.workers, 0, -1, withscores=True)
            pipe = self._client.pipeline(transaction=False)
            for worker, _ in seen:
                pipe.hget(self._keys.worker(worker.decode()), "info")
            infos = pipe.execute()
        return [read_worker(w.decode(), at, info) for (w, at), info in zip(seen, infos, strict=True) if info]

    def beat(self, kind: ProcessKind, name: str, details: Mapping[str, object], life_ms: int) -> None:
        """Say that a process lives, and what it does; forget those of its kind that are silent for ``life_ms``."""
        heard = self._run(HeartbeatCall(kind, name, json.dumps(details), life_ms))
        fault_point("beat.told")
        with translated(self._settings):
            self._client.zremrangebyscore(self._keys.living(kind), "-inf", heard.now_ms - life_ms)

    def leave(self, kind: ProcessKind, name: str) -> None:
        """Take a process that ended in order off the list."""
        with translated(self._settings):
            self._client.delete(self._keys.process(kind, name))
            fault_point("leave.partly")
            self._client.zrem(self._keys.living(kind), name)

    def heartbeats(self, kind: ProcessKind, max_age_ms: int) -> list[Heartbeat]:
        """Processes whose last heartbeat is at most so old, the oldest first. Writes nothing."""
        oldest = now_ms(self._client, self._settings) - max_age_ms
        with translated(self._settings):
            seen = self._client.zrangebyscore(self._keys.living(kind), oldest, "+inf", withscores=True)
            pipe = self._client.pipeline(transaction=False)
            for name, _ in seen:
                pipe.hget(self._keys.process(kind, name.decode()), "info")
            infos = pipe.execute()
        return [
            Heartbeat(name.decode(), int(at), json.loads(info))
            for (name, at), info in zip(seen, infos, strict=True)
            if info
        ]
