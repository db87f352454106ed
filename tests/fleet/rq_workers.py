"""RQ workers as processes, beside a fleet made of the moves."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer
from tests.unit.producer.stub_fleet import StubFleet, text_of
from tests.waiting import until

from headrace.broker import Broker
from headrace.config import Settings
from headrace.keys import RequestStream
from headrace.producer.bulk.names import seed_of
from headrace.testing.servers import Server

GENERATE = "headrace.producer.jobs.generate"
GENERATE_MANY = "headrace.producer.jobs.generate_many"
#: A token from which on the stub fleet waits, where a test says so.
HELD = 4


@dataclass
class RqBench:
    """A queue, its fleet, and the rq workers of one test."""

    settings: Settings
    broker: Broker
    fleet: StubFleet
    queue: Queue
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    folder: str = field(default_factory=lambda: tempfile.mkdtemp(prefix="hr-rq-"))

    @property
    def log(self) -> str:
        """What the workers have said."""
        return (Path(self.folder) / "log").read_text(errors="replace")

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a worker."""
        command = [sys.executable, "-P", "-m", "headrace", "rq-worker", *arguments]
        with (Path(self.folder) / "log").open("ab") as log:
            # A session of its own: nothing that a worker does to its group may reach the tests.
            process = subprocess.Popen(
                command, env=self.settings.to_environ() | variables, stderr=log, stdout=log, start_new_session=True
            )
        self.started.append(process)
        return process

    def burst(self) -> None:
        """Carry out all that is enqueued."""
        status = self.start("--burst").wait(30)
        assert status == 0, self.log

    def enqueue(self, function: str, **options: Any) -> Job:
        """Enqueue a job."""
        return self.queue.enqueue(function, **options)

    def meta(self, job: Job) -> dict[str, Any]:
        """As it is now."""
        return dict(job.get_meta(refresh=True))

    def until_meta(self, job: Job, holds: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until a job's meta says something."""
        until(lambda: holds(self.meta(job)))

    def until_status(self, job: Job, status: str) -> None:
        """Wait until RQ says something of a job."""
        try:
            until(lambda: job.get_status(refresh=True).value == status)
        except AssertionError as error:
            raise AssertionError(f"{job.id} is {job.get_status(refresh=True)}, not {status}: {self.log}") from error

    def worker_of(self, job: Job) -> str:
        """Name of the worker that carries a job out; "" if none does."""
        client: Any = self.queue.connection
        return (client.hget(job.key, "worker_name") or b"").decode()

    def result(self, job: Job) -> Any:
        """What a job has returned."""
        return job.return_value(refresh=True)

    def end_of(self, request_id: str) -> tuple[str | None, str | None]:
        """State and reason of a request."""
        fields = self.broker.request_fields(request_id)
        return fields.get("state"), fields.get("reason")

    def until_cancelled(self, request_id: str) -> None:
        """Wait until a request was cancelled."""
        until(lambda: self.end_of(request_id) == ("done", "cancelled"))

    def close(self) -> None:
        """End what still runs, and remove the log."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
        shutil.rmtree(self.folder)


@contextmanager
def open_bench(settings: Settings, server: Server) -> Iterator[RqBench]:
    """A bench on a server's queues, whose jobs are JSON."""
    broker = Broker.connect(settings)
    lanes = (RequestStream("normal"), RequestStream("bulk"))
    with StubFleet(broker, streams=lanes) as fleet, server.client() as client:
        bench = RqBench(settings, broker, fleet, Queue("headrace", connection=client, serializer=JSONSerializer))
        try:
            yield bench
        finally:
            bench.close()
    broker.close()


def text_for(job: Job, num_tokens: int) -> str:
    """What the stub fleet writes for a job of one request that asks for no seed."""
    return text_of(seed_of(f"rq-{job.id}"), num_tokens)


def horse_of(process: subprocess.Popen[bytes]) -> int:
    """The process in which a worker carries out its job."""
    found: list[int] = []

    def look() -> bool:
        found[:] = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        return bool(found)

    until(look)
    return found[0]


def kill(pid: int) -> None:
    """As a crash would."""
    os.kill(pid, signal.SIGKILL)
