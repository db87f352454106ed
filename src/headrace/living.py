"""Which processes of a queue live, and what they last said of themselves."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import redis

from headrace.config import Settings
from headrace.connection import now_ms, translated
from headrace.errors import DecodeError
from headrace.faults import fault_point
from headrace.heartbeat import Heartbeat, WorkerInfo, read_heartbeat, read_worker
from headrace.keys import Keys, ProcessKind
from headrace.moves import Beat, HeartbeatCall

log = logging.getLogger(__name__)
T = TypeVar("T")


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
            infos = pipe.execute(raise_on_error=False)
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
        if kind == "worker":
            return [Heartbeat(w.worker, w.seen_ms, w.details) for w in self.seen_workers(max_age_ms)]
        return self._seen(kind, max_age_ms, read_heartbeat)

    def seen_workers(self, max_age_ms: int) -> list[WorkerInfo]:
        """The same workers as ``workers``, the oldest heartbeat first. Writes nothing."""
        return self._seen("worker", max_age_ms, read_worker)

    def _seen(self, kind: ProcessKind, max_age_ms: int, read: Callable[[str, float, bytes], T]) -> list[T]:
        oldest = now_ms(self._client, self._settings) - max_age_ms
        with translated(self._settings):
            seen = self._client.zrangebyscore(self._keys.living(kind), oldest, "+inf", withscores=True)
            pipe = self._client.pipeline(transaction=False)
            for name, _ in seen:
                pipe.hget(self._keys.process(kind, name.decode(errors="replace")), "info")
            infos = pipe.execute(raise_on_error=False)
        return self._readable(seen, infos, read)

    def _readable(
        self,
        seen: Sequence[tuple[bytes, float]],
        infos: Sequence[bytes | Exception | None],
        read: Callable[[str, float, bytes], T],
    ) -> list[T]:
        found = []
        for (raw_name, at), info in zip(seen, infos, strict=True):
            name = raw_name.decode(errors="replace")
            try:
                if isinstance(info, redis.ResponseError):
                    raise DecodeError(f"heartbeat of {name!r}: {info}")
                if isinstance(info, Exception):
                    raise info
                if info:
                    found.append(read(name, at, info))
            except DecodeError as error:
                if name not in self._unreadable:
                    log.warning("passing over a process: %s", error)
                self._unreadable.add(name)
        return found
