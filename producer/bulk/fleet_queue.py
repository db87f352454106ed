"""RQ's queue, out of whose lists nothing is read that cannot be a job's name.

RQ's own checks a name only when it makes a job of it, and then with an error that ends the worker: in its list of jobs
at hand such a name would end every worker that looks there, and hide the jobs behind it.
"""

import logging
import re
from collections.abc import Sequence
from typing import Any

from rq.intermediate_queue import IntermediateQueue
from rq.job import JOB_ID_PATTERN
from rq.queue import Queue
from rq.registry import ReadyJobRegistry, ScheduledJobRegistry
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer
from rq.utils import current_timestamp

logger = logging.getLogger("headrace.rq_worker")

_NAME = re.compile(JOB_ID_PATTERN.pattern.encode())
#: Of an execution: the job's and its own.
_EXECUTION = re.compile(rb"%b(:%b)?" % (_NAME.pattern, _NAME.pattern))
#: Jobs whose time has come that are enqueued at once.
_DUE_JOBS = 1_000


class FleetQueue(Queue):
    """A queue for jobs of ``job_class``, which finds no job where there is none."""

    @classmethod
    def lmove(cls, connection: Any, queue_key: str, timeout: int | None) -> tuple[str, bytes] | None:
        """Take the next name that can be a job's; the key and the name, None if there is none and no time to wait."""
        while True:
            found: tuple[str, bytes] | None = super().lmove(connection, queue_key, timeout)
            if found is None or _NAME.fullmatch(found[1]):
                return found
            connection.lrem(IntermediateQueue(queue_key, connection).key, 1, found[1])
            _tell(queue_key, found[1])

    def drop_what_is_no_job(self) -> None:
        """Take what can be no name out of the lists in which RQ looks for lost jobs and for those that may begin."""
        at_hand, started, ready = self.intermediate_queue.key, self.started_job_registry.key, self._ready.key
        client: Any = self.connection
        for name in client.lrange(at_hand, 0, -1):
            if not _NAME.fullmatch(name):
                client.lrem(at_hand, 1, name)
                _tell(at_hand, name)
        for key, pattern in ((started, _EXECUTION), (ready, _NAME)):
            for name in client.zrange(key, 0, -1):
                if not pattern.fullmatch(name):
                    client.zrem(key, name)
                    _tell(key, name)

    def enqueue_due_jobs(self) -> None:
        """Enqueue the jobs whose time has come; nothing keeps two processes from taking the same."""
        registry = ScheduledJobRegistry(queue=self, job_class=self.job_class)  # type: ignore[no-untyped-call]
        client: Any = self.connection
        for raw in client.zrangebyscore(registry.key, 0, current_timestamp(), start=0, num=_DUE_JOBS):
            job = self.job_class.fetch_many([raw.decode(errors="replace")], self.connection, self.serializer)[0]
            with client.pipeline() as pipeline:
                pipeline.zrem(registry.key, raw)
                if job is None:
                    _tell(registry.key, raw)
                elif job.has_rate_limit:
                    self._enqueue_rate_limited_job(job, pipeline=pipeline, at_front=job.should_enqueue_at_front())
                else:
                    self._enqueue_job(job, pipeline=pipeline, at_front=job.should_enqueue_at_front())
                pipeline.execute()

    @property
    def _ready(self) -> ReadyJobRegistry:
        return ReadyJobRegistry(queue=self, job_class=self.job_class)


def enqueue_due_jobs(queues: Sequence[FleetQueue]) -> None:
    """Enqueue the jobs whose time has come, unless somebody else is at it.

    As ``RQScheduler`` does, which knows no ``job_class``: names of no job would end it. Its locks are used.
    """
    clock = RQScheduler(
        queues, connection=queues[0].connection, serializer=JSONSerializer, logging_level=logging.WARNING
    )
    if clock.acquire_locks():  # type: ignore[no-untyped-call]
        try:
            for queue in queues:
                queue.enqueue_due_jobs()
        finally:
            clock.release_locks()  # type: ignore[no-untyped-call]


def _tell(key: str, name: bytes) -> None:
    logger.warning("%s: %.80r is no job", key, name.decode(errors="replace"))
