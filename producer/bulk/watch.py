"""A job's watch: it tells in the job's meta how far the job is, and notices when the job is not wanted any more."""

import logging
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rq.exceptions import InvalidJobOperation
from rq.job import Job, JobStatus
from rq.timeouts import JobTimeoutException

from headrace.config import Settings
from headrace.connection import translated
from headrace.errors import BrokerUnavailableError, CancelledError, HeadraceError
from headrace.producer.bulk.failure import failure_fields

logger = logging.getLogger("headrace.rq_worker")


class Watch:
    """Looks every ``rq_progress_ms``, in a thread of its own: while a request waits, nothing else would wake the job.

    RQ tells a running job nothing of ``job.cancel()``, so its status is read. A job that was cancelled or deleted, or
    whose time is over, has its requests cancelled. Keys of ``meta`` that are not the job's own are left as they are.

    Args:
        job: the one that is being carried out.
        settings: the pause between two looks.
        facts: what to tell, JSON-able; asked at every look, from this thread.
        cancel: ends the job's requests; may be called from this thread, and twice.
    """

    def __init__(
        self, job: Job, settings: Settings, facts: Callable[[], Mapping[str, Any]], cancel: Callable[[], object]
    ) -> None:
        self._job = job
        self._settings = settings
        self._facts = facts
        self._cancel = cancel
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._is_wanted = True
        self._told: Mapping[str, Any] = {}

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if isinstance(error, JobTimeoutException):
            self._cancel()
        self._look(_end(error))

    def _run(self) -> None:
        while not self._over.wait(self._settings.rq_progress_ms / 1000):
            self._look()

    def _look(self, end: Mapping[str, Any] | None = None) -> None:
        try:
            with translated(self._settings):
                if self._is_wanted and not self._still_wanted():
                    self._cancel()
                    self._is_wanted = False
                    logger.info("job %s is not wanted any more: its requests are cancelled", self._job.id)
                self._tell({**self._facts(), **(end or {})})
        except BrokerUnavailableError as error:
            logger.warning("job %s: %s", self._job.id, error)

    def _still_wanted(self) -> bool:
        # A second object, because reading the status changes what a job's own object remembers.
        found = Job(self._job.id, connection=self._job.connection, serializer=self._job.serializer)
        try:
            return found.get_status() != JobStatus.CANCELED
        except InvalidJobOperation:
            return False  # it was deleted

    def _tell(self, facts: Mapping[str, Any]) -> None:
        # A deleted job's hash would come back, with nothing but its meta in it.
        if facts != self._told and Job.exists(self._job.id, self._job.connection):
            self._job.meta.update(facts)
            self._job.save_meta()  # type: ignore[no-untyped-call]
            self._told = facts


def _end(error: BaseException | None) -> dict[str, Any]:
    if error is None:
        return {"state": "done"}
    if isinstance(error, CancelledError | JobTimeoutException):
        return {"state": "cancelled"}
    if isinstance(error, HeadraceError):
        return {"state": "failed", "error": failure_fields(error)}
    return {"state": "failed"}
