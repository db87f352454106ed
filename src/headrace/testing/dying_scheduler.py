"""A scheduler of words that may be killed at any of its commands; a process of its own runs ``run_scheduler``."""

import os
import signal
from typing import Any

import redis.connection

from headrace.broker import Broker
from headrace.config import Settings
from headrace.testing.words import word_tokenizer
from headrace.workers.scheduler.admission import Admitter
from headrace.workers.scheduler.process import Scheduler


def die_at(command: int) -> None:
    """Count what goes to the server, and end this process there, as kill -9 does."""
    plain: Any = redis.connection.AbstractConnection.send_packed_command
    sent = 0

    def counted(connection: Any, packed: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal sent
        sent += 1
        if sent == command:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(connection, packed, *args, **kwargs)

    redis.connection.AbstractConnection.send_packed_command = counted  # type: ignore[assignment, method-assign]


def run_scheduler(settings: Settings, kill_at: int) -> None:
    """Schedule until SIGTERM, or until the process kills itself.

    Args:
        settings: of the queue.
        kill_at: before which command, counted from 1; 0 for never.
    """
    broker = Broker.connect(settings)
    broker.adopt_contract()
    scheduler = Scheduler(broker, Admitter(word_tokenizer(64), "r1", settings), settings)
    signal.signal(signal.SIGTERM, lambda *_: scheduler.stop())
    die_at(kill_at)
    scheduler.run()
