"""A job's watch: it tells in the job's meta how far the job is, and notices when the job is not wanted any more."""

import logging
import threading
from collections.abc import Callable, Mapping
from enum import Enum, auto
from types import TracebackType
from typing import Any, Self

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
    whose time is over, has its requests cancelled; one that another worker has taken meanwhile is the other's to end.
    Keys of ``meta`` that are not the job's own are left as they are.

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
        self._look(_end(error), is_time_over=isinstance(error, JobTimeoutException))

    def _run(self) -> None:
        while not self._over.wait(self._settings.rq_progress_ms / 1000):
            self._look()

    def _look(self, end: Mapping[str, Any] | None = None, *, is_time_over: bool = False) -> None:
        try:
            with translated(self._settings):
                standing = self._standing()
                if standing is _Standing.LOST:
                    return
                if self._is_wanted and (is_time_over or standing is _Standing.UNWANTED):
                    self._cancel()
                    self._is_wanted = False
                    logger.info("job %s is not wanted any more: its requests are cancelled", self._job.id)
                self._tell({**self._facts(), **(end or {})})
        except BrokerUnavailableError as error:
            logger.warning("job %s: %s", self._job.id, error)

    def _standing(self) -> "_Standing":
        client: Any = self._job.connection
        status, worker = client.hmget(self._job.key, "status", "worker_name")
        if status is None or status.decode() == JobStatus.CANCELED:
            return _Standing.UNWANTED
        is_own = status.decode() == JobStatus.STARTED and worker == (self._job.worker_name or "").encode()
        return _Standing.OWN if is_own else _Standing.LOST

    def _tell(self, facts: Mapping[str, Any]) -> None:
        # A deleted job's hash would come back, with nothing but its meta in it.
        if facts != self._told and Job.exists(self._job.id, self._job.connection):
            self._job.meta.update(facts)
            self._job.save_meta()  # type: ignore[no-untyped-call]
            self._told = facts


class _Standing(Enum):
    """What RQ says of a job that is being carried out here."""

    OWN = auto()
    #: Cancelled, or deleted.
    UNWANTED = auto()
    #: Its worker was silent for a lease: it waits for another, or has one.
    LOST = auto()


def _end(error: BaseException | None) -> dict[str, Any]:
    if error is None:
        return {"state": "done"}
    if isinstance(error, CancelledError | JobTimeoutException):
        return {"state": "cancelled"}
    if isinstance(error, HeadraceError):
        return {"state": "failed", "error": failure_fields(error)}
    return {"state": "failed"}
