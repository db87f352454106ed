"""Whose a job is: of the worker whose execution of it stands in RQ's registry of started jobs.

A worker that was silent for a lease has lost its job to whoever found that out, who has taken the entry away. It may
come back and not know: it was stopped, its machine slept. So it looks before it says what became of the job.
"""

from typing import Any

from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue


def is_held(job: Job, execution: Execution) -> bool:
    """Whether a job is still this execution's."""
    client: Any = job.connection
    return client.zscore(job.started_job_registry.key, execution.composite_key) is not None


def hand_back(job: Job, queue: Queue, execution: Execution) -> bool:
    """Put a job in front of its queue, with the meta that its process has written; False: it is another's by now.

    Raises:
        NoSuchJobError: it was deleted.
    """
    key = job.started_job_registry.key

    def move(pipeline: Any) -> bool:
        if pipeline.zscore(key, execution.composite_key) is None:
            return False
        job.refresh()  # type: ignore[no-untyped-call]
        pipeline.multi()
        execution.delete(job, pipeline)
        queue._enqueue_job(job, pipeline=pipeline, at_front=True)
        return True

    # Sent again if somebody has changed the registry meanwhile.
    client: Any = job.connection
    return bool(client.transaction(move, key, value_from_callable=True))
