"""Which processes of a queue live, and what they last said of themselves."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import redis

from headrace.config import Settings
from headrace.connection import now_ms, translated
from headrace.errors import DecodeError
from headrace.faults import fault_point
from headrace.keys import Keys, ProcessKind
from headrace.moves import Beat, HeartbeatCall

log = logging.getLogger(__name__)
T = TypeVar("T")


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
    """A heartbeat from its JSON.

    Raises:
        DecodeError: it is none, or lacks what every worker says.
    """
    details = _read_details(worker, info)
    try:
        max_rows, kv_tokens, num_rows = (int(details[name]) for name in ("max_rows", "kv_tokens", "num_rows"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DecodeError(f"heartbeat of {worker}: {type(error).__name__} {error}") from error
    if max_rows < 1 or kv_tokens < 1:
        raise DecodeError(f"heartbeat of {worker}: room for {max_rows} rows and {kv_tokens} tokens")
    return WorkerInfo(worker, int(seen_ms), max_rows, kv_tokens, num_rows, details)


def _read_details(name: str, info: bytes) -> dict[str, Any]:
    try:
        details = json.loads(info)
    except ValueError as error:
        raise DecodeError(f"heartbeat of {name}: {error}") from error
    if not isinstance(details, dict):
        raise DecodeError(f"heartbeat of {name}: not an object")
    return details


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
        self._unreadable: set[str] = set()

    def workers(self, max_age_ms: int) -> list[WorkerInfo]:
        """Workers whose last heartbeat is at most so old; older ones are forgotten.

        A heartbeat that nobody can read is passed over: one process that writes nonsense must not end a scheduler.
        """
        oldest = now_ms(self._client, self._settings) - max_age_ms
        fault_point("workers.timed")
        with translated(self._settings):
            self._client.zremrangebyscore(self._keys.workers, "-inf", oldest)
            fault_point("workers.forgotten")
            seen = self._client.zrange(self._keys.workers, 0, -1, withscores=True)
            pipe = self._client.pipeline(transaction=False)
            for worker, _ in seen:
                pipe.hget(self._keys.worker(worker.decode(errors="replace")), "info")
            infos = pipe.execute()
        return self._readable(seen, infos, read_worker)

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
                pipe.hget(self._keys.process(kind, name.decode(errors="replace")), "info")
            infos = pipe.execute()
        return self._readable(seen, infos, lambda name, at, info: Heartbeat(name, int(at), _read_details(name, info)))

    def _readable(
        self,
        seen: Sequence[tuple[bytes, float]],
        infos: Sequence[bytes | None],
        read: Callable[[str, float, bytes], T],
    ) -> list[T]:
        found = []
        for (raw_name, at), info in zip(seen, infos, strict=True):
            name = raw_name.decode(errors="replace")
            try:
                if info:
                    found.append(read(name, at, info))
            except DecodeError as error:
                if name not in self._unreadable:
                    log.warning("passing over a process: %s", error)
                self._unreadable.add(name)
        return found
