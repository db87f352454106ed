"""The process ``headrace rq-worker``: a ``JobWorker`` from its start to its end."""

import logging
import os

from rq.exceptions import StopRequested

from headrace.broker import Broker
from headrace.config import Settings
from headrace.connection import translated
from headrace.producer.bulk.worker import JobWorker

# Named apart from the workers that compute.
logger = logging.getLogger("headrace.rq_worker")


def run(settings: Settings, *, burst: bool = False) -> int:
    """Work until SIGTERM or Ctrl-C, or with ``burst`` until the queue is empty; return the exit status.

    Raises:
        BrokerUnavailableError: no server answers.
        ConfigurationError: the server is not fit, or refuses these credentials.
    """
    Broker.connect(settings).close()
    # The functions of jobs read their settings there, in processes that are forked from this one.
    os.environ.update(settings.to_environ())
    with translated(settings):
        worker = JobWorker(settings)
        logger.info("rq worker %s serves %s for queue %s", worker.name, settings.rq_queue, settings.queue_name)
        try:
            worker.work(burst=burst, logging_level="DEBUG" if settings.log_level == "debug" else "WARNING")
        except StopRequested:
            worker.teardown()  # type: ignore[no-untyped-call]
        is_done = burst and all(queue.is_empty() for queue in worker.queues)
    logger.info("rq worker stopped")
    return 0 if is_done or worker.ended_in_order else 1
