"""What a queue knows of classes of workers: who lives, what batches cost them, what became of batches."""

from typing import Any

import redis

from headrace.batch_log import BatchRecord, read_batch_log
from headrace.checks import MOST
from headrace.config import Settings
from headrace.connection import now_ms, translated
from headrace.errors import ConfigurationError
from headrace.faults import fault_point
from headrace.keys import Keys

#: A request to measure that no worker has heard of by then is forgotten.
_MEASURE_LIFE_MS = 3_600_000


class ClassCosts:
    """The part of a ``Broker`` that deals with costs.

    All methods raise BrokerUnavailableError when the server cannot be reached.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        # Any: as in Broker.
        self._client: Any = client
        self._settings = settings
        self._keys = Keys(settings.queue_name)

    def tables(self) -> dict[str, bytes]:
        """The published cost tables, encoded, by class of workers."""
        with translated(self._settings):
            tables = self._client.hgetall(self._keys.cost)
        return {worker_class.decode(errors="replace"): table for worker_class, table in tables.items()}

    def classes(self) -> dict[str, int]:
        """Classes of workers that live or lived, and when (ms) a worker of each was last seen."""
        with translated(self._settings):
            seen = self._client.zrange(self._keys.classes, 0, -1, withscores=True)
        found = ((worker_class.decode(errors="replace"), at) for worker_class, at in seen)
        return {worker_class: int(at) for worker_class, at in found if abs(at) <= MOST}  # who wrote inf was no worker

    def living(self) -> list[str]:
        """Classes of which a worker was seen within a lease, in order of their names."""
        oldest = now_ms(self._client, self._settings) - self._settings.lease_ms
        return sorted(name for name, seen_ms in self.classes().items() if seen_ms > oldest)

    def forget(self, max_age_ms: int) -> list[str]:
        """Drop classes, with their costs, of which no worker was seen for so long; return their names."""
        oldest = now_ms(self._client, self._settings) - max_age_ms
        with translated(self._settings):
            stale = self._client.zrangebyscore(self._keys.classes, "-inf", oldest)
            fault_point("forget.found")
            if stale:
                pipe = self._client.pipeline(transaction=False)
                pipe.hdel(self._keys.cost, *stale)
                fault_point("forget.partly", pipe.execute)
                pipe.zrem(self._keys.classes, *stale)
                pipe.execute()
        return [worker_class.decode(errors="replace") for worker_class in stale]

    def request_measurement(self, worker_class: str = "") -> list[str]:
        """Ask workers to measure their costs again, as soon as they have nothing to compute.

        Args:
            worker_class: whose; "" for all.

        Returns:
            The living classes that were asked.

        Raises:
            ConfigurationError: no worker of the class lives, or no worker at all.
        """
        alive = self.living()
        asked = [name for name in alive if worker_class in ("", name)]
        if not asked:
            what = f"no worker of class {worker_class!r} lives" if worker_class else "no worker lives"
            raise ConfigurationError(f"{what}; living classes: {', '.join(alive) or 'none'}")
        with translated(self._settings):
            pipe = self._client.pipeline(transaction=False)
            pipe.hset(self._keys.measure, worker_class or "*", now_ms(self._client, self._settings))
            pipe.pexpire(self._keys.measure, _MEASURE_LIFE_MS)
            pipe.execute()
        return asked

    def batch_log(self, count: int) -> list[BatchRecord]:
        """The newest batches, newest first: as they were cut, and what they really cost where that is known."""
        with translated(self._settings):
            # All of it, for a batch's two entries may stand far apart.
            entries = self._client.xrevrange(self._keys.batch_log)
        return read_batch_log([fields for _, fields in entries if fields])[:count]
