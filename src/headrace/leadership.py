"""Which of a queue's schedulers leads."""

from typing import Any

import redis

from headrace.config import Settings
from headrace.connection import translated
from headrace.faults import fault_point
from headrace.keys import Keys


class Leadership:
    """The part of a ``Broker`` that deals with the lease of the leading scheduler.

    All methods raise BrokerUnavailableError when the server cannot be reached.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        # Any: as in Broker.
        self._client: Any = client
        self._settings = settings
        self._keys = Keys(settings.queue_name)

    def take(self, scheduler: str, lease_ms: int) -> bool:
        """Become or remain the queue's leading scheduler. For efficiency only: two leaders do no harm."""
        with translated(self._settings):
            leader = self._client.get(self._keys.leader)
            fault_point("leader.read")
            if leader is not None:
                return bool(leader == scheduler.encode() and self._client.pexpire(self._keys.leader, lease_ms))
            try:
                return bool(self._client.set(self._keys.leader, scheduler, nx=True, px=lease_ms))
            except redis.OutOfMemoryError:
                return True  # a full server takes no name, and only requests that go on to their end make room

    def holder(self) -> str:
        """Name of the scheduler that leads, ``<host>-<pid>-<random>``; "" if there is none."""
        with translated(self._settings):
            name = self._client.get(self._keys.leader)
        return name.decode(errors="replace") if name else ""

    def resign(self, scheduler: str) -> None:
        """Let another scheduler lead at once."""
        with translated(self._settings):
            leads = self._client.get(self._keys.leader) == scheduler.encode()
            fault_point("resign.read")
            if leads:
                self._client.delete(self._keys.leader)
