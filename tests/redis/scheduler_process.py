"""Schedulers of words as processes that a test may kill."""

import multiprocessing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from headrace.broker import Broker
from headrace.config import Settings
from headrace.testing.dying_scheduler import run_scheduler
from headrace.testing.servers import Server

#: Its processes are copies of one that has imported everything already.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["headrace.testing.dying_scheduler"])


@contextmanager
def scheduler(server: Server, given: Mapping[str, Any], fault: str = "") -> Iterator[BaseProcess]:
    """A scheduler's process, with these settings and perhaps a fault; see ``headrace.faults``."""
    process = FORKS.Process(target=run_scheduler, args=(Settings(redis_url=server.url, **given), fault))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
        process.close()


def leader_pid(broker: Broker) -> int:
    """0 where nobody leads."""
    return int((broker.leadership.holder() or "-0-").rsplit("-", 2)[1])
