"""What takes jobs from RQ's queue and carries each out in a process of its own.

RQ's own worker, but for four things. It carries out nothing that is not on the list (``fleet_job.py``). A job that ends
for good has its requests cancelled. SIGTERM hands the running job back at once: its requests go on in the fleet, and
whoever takes the job reads on. And a job whose worker is lost is found within about ``rq_lease_ms``, where RQ looks for
such jobs every few minutes.
"""

import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from rq.exceptions import AbandonedJobError, InvalidJobOperation, NoSuchJobError
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.timeouts import JobTimeoutException
from rq.utils import now
from rq.worker import Worker

from headrace.config import Settings
from headrace.connection import open_patient_client, translated
from headrace.errors import BrokerUnavailableError, HeadraceError, OverloadedError
from headrace.lifetime import end_with_parent, is_orphan
from headrace.producer.bulk.custody import hand_back, is_held
from headrace.producer.bulk.fleet_job import FleetJob
from headrace.producer.bulk.fleet_queue import FleetQueue, enqueue_due_jobs
from headrace.producer.bulk.room import Room
from headrace.producer.bulk.withdraw import tell_end, withdraw

# Named apart from the workers that compute.
logger = logging.getLogger("headrace.rq_worker")

#: Looks at a job, and at other workers' jobs, in the time of a lease.
_TICKS_PER_LEASE = 3
#: Which a worker looks back at its start.
_LEASES_AT_START = 20
#: How long a worker that ends waits for a full server to take its job back. Well under what a supervisor leaves it.
_HAND_BACK_S = 3


class JobWorker(Worker):
    """RQ's worker under a fleet's settings."""

    max_connection_wait_time = 2.0

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lease_s = settings.rq_lease_ms // 1000
        self._tick_s = max(1, self._lease_s // _TICKS_PER_LEASE)
        self._is_handing_back = False
        self._num_leases_back = _LEASES_AT_START
        self._room = Room()
        super().__init__(
            [settings.rq_queue],
            name=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
            connection=open_patient_client(settings, self._room.wait),
            default_result_ttl=max(1, settings.result_ttl_ms // 1000),
            job_class=FleetJob.under(settings),
            queue_class=FleetQueue,
            serializer=JSONSerializer,
            exception_handlers=[self._on_exception],
            job_monitoring_interval=self._tick_s,
            maintenance_interval=self._tick_s,
            log_job_description=False,  # it has the prompt in it
        )

    @property
    def ended_in_order(self) -> bool:
        """Somebody asked for the end."""
        return self._shutdown_requested_date is not None

    @property
    def dequeue_timeout(self) -> int:
        """Seconds to wait for a job before looking after those of others."""
        return self._tick_s

    def bootstrap(self, *args: Any, **kwargs: Any) -> None:
        """Begin; who is asked to stop meanwhile ends in order, though RQ takes signals only when all is begun."""
        self._install_signal_handlers()  # type: ignore[no-untyped-call]
        super().bootstrap(*args, **kwargs)

    def subscribe(self) -> None:
        """Listen to RQ's commands, in a thread that takes no signal: the main one waits to be interrupted by them."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGINT, signal.SIGTERM})
        try:
            super().subscribe()  # type: ignore[no-untyped-call]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Seconds for which a job is this worker's without another heartbeat."""
        return self._lease_s

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Carry one out."""
        logger.info("job %s begins", job.id)
        super().execute_job(job, queue)
        status = _status(job)
        logger.info("job %s is %s", job.id, "gone" if status is None else status.value)

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        """Carry one out, in a process of its own, which ends with the worker."""
        end_with_parent()
        if is_orphan(self.pid):
            os._exit(1)
        super().main_work_horse(job, queue)

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        """Start that process."""
        super().fork_work_horse(job, queue)
        if self._stop_requested:  # between the job's coming and this moment
            self._take_back()

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """End that process. By its own id: its group is the worker's until it has made one of its own."""
        try:
            os.kill(self.horse_pid, sig)
        except ProcessLookupError:
            logger.debug("process %d of the job is gone already", self.horse_pid)

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """Keep a job, as well as one can while the server is away; one that others have taken is theirs."""
        try:
            with translated(self._settings):
                super().maintain_heartbeats(job, execution)
                if self.horse_pid and not is_held(job, execution):
                    self.kill_horse()
        except (BrokerUnavailableError, OverloadedError) as error:
            logger.warning("job %s: no heartbeat: %s", job.id, error)

    def set_shutdown_requested_date(self) -> None:
        """Tell RQ's monitors of the end; called from within a signal's handler, where nothing may be waited for."""
        self._tell_monitors(super().set_shutdown_requested_date)

    def register_death(self) -> None:
        """Leave RQ's list of workers; what cannot be taken out runs out by itself."""
        self._tell_monitors(super().register_death)

    def _tell_monitors(self, tell: Callable[[], None]) -> None:
        try:
            with translated(self._settings), self._room.not_waited_for():
                tell()
        except (BrokerUnavailableError, OverloadedError) as error:
            logger.warning("RQ's list of workers: %s", error)

    def run_maintenance_tasks(self) -> None:
        """Look after lost jobs, and after those whose time has come (retries with an interval, ``enqueue_in``).

        What others have spoilt in RQ's keys is told, and is no reason to carry out no jobs.
        """
        for look_after in (self._find_lost, self._enqueue_due, self._withdraw_cancelled):
            try:
                with translated(self._settings):
                    look_after()
            except (ValueError, BrokerUnavailableError, OverloadedError) as error:
                logger.error("%s: %s", look_after.__name__.strip("_").replace("_", " "), error)
        self.last_cleaned_at = now()  # type: ignore[assignment]

    def _find_lost(self) -> None:
        if self._room.was_waited_for(self._lease_s):
            return  # nobody could write a heartbeat
        for queue in self._fleet_queues:
            queue.drop_what_is_no_job()
            # A worker that was lost in here would keep all others out for RQ's quarter of an hour.
            self.connection.expire(queue.registry_cleaning_key, self._lease_s, lt=True)
        super().run_maintenance_tasks()  # type: ignore[no-untyped-call]

    def _enqueue_due(self) -> None:
        enqueue_due_jobs(self._fleet_queues)

    def handle_warm_shutdown_request(self) -> None:
        """SIGTERM or Ctrl-C: hand the running job back."""
        logger.info("asked to stop")
        self._room.end_after(_HAND_BACK_S if self.horse_pid else 0)
        if self.horse_pid:
            self._take_back()

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Tell why a job failed; where from, only of what nobody has foreseen. The job's result has it in any case."""
        error = exc_info[1]
        if isinstance(error, HeadraceError | JobTimeoutException):
            logger.warning("job %s failed: %s: %s", job.id, type(error).__name__, error)
        else:
            super().handle_exception(job, *exc_info)

    def handle_job_success(self, job: Job, queue: Queue, started_job_registry: Any, execution: Execution) -> None:
        """Keep a job's result, unless another worker is at it."""
        if is_held(job, execution):
            super().handle_job_success(job, queue, started_job_registry, execution)
        else:
            self._leave(job, execution)

    def handle_job_failure(
        self,
        job: Job,
        queue: Queue,
        started_job_registry: Any = None,
        exc_string: str = "",
        execution: Execution | None = None,
    ) -> None:
        """Settle a job that did not end well, in whichever way."""
        status = _status(job)
        if status in (None, JobStatus.CANCELED):
            self._withdraw(job, "cancelled")
            self._forget(job, execution, is_deleted=status is None)
        elif execution is not None and not is_held(job, execution):
            self._leave(job, execution)
        elif execution is not None and self._is_handing_back and not self.is_horse:
            self._hand_back(job, queue, execution)
        else:
            # First, so that whoever sees the job's end may rely on it.
            if self._stopped_job_id == job.id:
                self._withdraw(job, "cancelled")
            elif not job.should_retry:
                self._withdraw(job, "failed")
            super().handle_job_failure(job, queue, started_job_registry, exc_string, execution)

    def _withdraw_cancelled(self) -> None:
        """Cancel the requests of jobs that were cancelled while no worker had them: after one has handed them back."""
        # Two leases, because the times in the registry are of whoever cancels; at first for as long as there may have
        # been no worker at all to look.
        since_s = time.time() - self._num_leases_back * self._lease_s
        self._num_leases_back = 2
        for queue in self._fleet_queues:
            names: Any = self.connection.zrangebyscore(queue.canceled_job_registry.key, since_s, "+inf")
            for name in names:
                job = queue.fetch_job(name.decode(errors="replace"))
                if job is not None:
                    self._withdraw(job, "cancelled")

    @property
    def _fleet_queues(self) -> list[FleetQueue]:
        return [queue for queue in self.queues if isinstance(queue, FleetQueue)]

    def _take_back(self) -> None:
        self._is_handing_back = True
        self.kill_horse()

    def _hand_back(self, job: Job, queue: Queue, execution: Execution) -> None:
        try:
            is_back = hand_back(job, queue, execution)
        except NoSuchJobError:
            return
        if is_back:
            logger.info("job %s goes back to its queue; its requests go on", job.id)
        else:
            self._leave(job, execution)

    def _leave(self, job: Job, execution: Execution) -> None:
        """Leave a job to whoever has taken it."""
        logger.warning("job %s was lost: this worker was silent for longer than its lease", job.id)
        with self.connection.pipeline() as pipeline:
            self.cleanup_execution(job, pipeline, execution)
            pipeline.execute()

    def _forget(self, job: Job, execution: Execution | None, *, is_deleted: bool) -> None:
        """Leave a cancelled or deleted job as it is: RQ would call it failed, or try it again."""
        with self.connection.pipeline() as pipeline:
            self.cleanup_execution(job, pipeline, execution)
            if is_deleted:
                pipeline.delete(job.key)  # RQ has written a heartbeat into it
            pipeline.execute()
        self._stopped_job_id = None
        self._release_slot_safely(job)

    def _on_exception(self, job: Job, kind: type[BaseException], *_: object) -> None:
        """Called by RQ; for a job whose worker was lost this is the only call."""
        if issubclass(kind, AbandonedJobError) and not job.retries_left:
            self._withdraw(job, "failed")

    def _withdraw(self, job: Job, state: str) -> None:
        try:
            withdraw(job, self._settings)
            with translated(self._settings):
                tell_end(job, state)
        except HeadraceError as error:
            logger.warning("job %s: its requests could not be cancelled: %s", job.id, error)


def _status(job: Job) -> JobStatus | None:
    """As RQ has it now; None: the job was deleted."""
    try:
        return job.get_status()
    except InvalidJobOperation:
        return None
