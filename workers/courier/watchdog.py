"""Kills an engine that hangs: it would keep its rows for ever."""

import asyncio
import contextlib
import logging
import os
import signal
import time

from headrace.workers.courier.desk import Desk
from headrace.workers.courier.engine_link import EngineLink

log = logging.getLogger(__name__)


class Watchdog:
    """Knows since when an engine that computes has said nothing."""

    def __init__(self, desk: Desk, engine_timeout_ms: int) -> None:
        self._desk = desk
        self._limit_s = engine_timeout_ms / 1000
        self._heard_s = time.monotonic()

    def hear(self) -> None:
        """The engine has said something, or gets something to compute: its time begins again."""
        self._heard_s = time.monotonic()

    async def run(self, link: EngineLink) -> None:
        """Watch one engine while it lives."""
        desk = self._desk
        while desk.link is link:
            await asyncio.sleep(min(self._limit_s / 4, 1.0))
            silence_s = time.monotonic() - self._heard_s
            if desk.link is link and desk.outbox.num_computing and silence_s > self._limit_s:
                log.error("the engine has said nothing for %.0f s; killing it", silence_s)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(link.ready.pid, signal.SIGKILL)
