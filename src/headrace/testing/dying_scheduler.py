"""A scheduler of words that dies at a fault point; a process of its own runs ``run_scheduler``."""

import signal

from headrace.broker import Broker
from headrace.config import Settings
from headrace.faults import VARIABLE, arm
from headrace.testing.words import word_tokenizer
from headrace.workers.scheduler.admission import Admitter
from headrace.workers.scheduler.process import Scheduler


def run_scheduler(settings: Settings, fault: str = "") -> None:
    """Schedule until SIGTERM, or until the process kills itself.

    Args:
        settings: of the queue.
        fault: as in ``HEADRACE_FAULT``; "" for none.
    """
    arm({VARIABLE: fault})
    broker = Broker.connect(settings)
    broker.adopt_contract()
    scheduler = Scheduler(broker, Admitter(word_tokenizer(64), "r1", settings), settings)
    signal.signal(signal.SIGTERM, lambda *_: scheduler.stop())
    scheduler.run()
