"""The processes of ``headrace up`` and of the demo, as stages for the supervisor."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.broker import Broker
from headrace.cli.options import is_url_given
from headrace.config import Settings
from headrace.errors import BrokerUnavailableError
from headrace.workers.child import ChildSpec
from headrace.workers.embedded_broker import EmbeddedBroker, default_data_dir, free_port

#: Behind its drain time and a lease to hand rows back, what a worker needs to end its two processes one by one.
_DRAIN_MARGIN_S = 15.0
_SCHEDULER_GRACE_S = 5.0
#: An rq worker hands its job back and ends; nothing has to be finished.
RQ_WORKER_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """What to start.

    Attributes:
        settings: as the processes see them; ``redis_url`` is the broker that they use.
        broker: the embedded one; None: a server that runs already.
    """

    settings: Settings
    broker: EmbeddedBroker | None

    @classmethod
    def plan(cls, settings: Settings) -> "Fleet":
        """Use the server that was named, else bring one.

        Raises:
            ConfigurationError: the port is taken, or the data folder cannot be used.
            BrokerUnavailableError: a server was named, and does not answer.
        """
        if not is_url_given(settings):
            return cls.with_own_broker(settings)
        Broker.connect(settings).close()
        return cls(settings, None)

    @classmethod
    def with_own_broker(cls, settings: Settings) -> "Fleet":
        """Bring a server; raises ConfigurationError as ``plan`` does."""
        data_dir = settings.data_dir or default_data_dir(settings.queue_name, settings.port)
        broker = EmbeddedBroker(settings.port or free_port(), data_dir.expanduser())
        broker.check()
        update = {"redis_url": broker.url, "port": broker.port, "redis_password_file": None}
        return cls(settings.model_copy(update=update), broker)

    def stages(self) -> list[list[ChildSpec]]:
        """Broker, then scheduler and workers; they stop in the reverse order."""
        settings = self.settings
        worker_grace_s = (settings.drain_ms + settings.lease_ms) / 1000 + _DRAIN_MARGIN_S
        processes = [headrace_child("scheduler", ["scheduler"], _metered(settings, 0), _SCHEDULER_GRACE_S)]
        processes += rq_workers(settings, settings.rq_workers)
        processes += [
            headrace_child(f"worker {number}", ["worker"], _metered(settings, number), worker_grace_s)
            for number in range(1, settings.workers)
        ]
        watch = WorkerWatch(settings)
        last, metered = f"worker {settings.workers}", _metered(settings, settings.workers)
        processes.append(headrace_child(last, ["worker"], metered, worker_grace_s, ready=watch))
        return [[self.broker.spec()], processes] if self.broker else [processes]


def rq_workers(settings: Settings, number: int) -> list[ChildSpec]:
    """So many processes that carry out jobs from RQ."""
    return [
        headrace_child(f"rq worker {index}", ["rq-worker"], settings, RQ_WORKER_GRACE_S)
        for index in range(1, number + 1)
    ]


def _metered(settings: Settings, number: int) -> Settings:
    """The settings of one of several processes, whose metrics need a port each: the scheduler's is the first."""
    port = settings.metrics_port
    return settings.model_copy(update={"metrics_port": port + number}) if port else settings


class WorkerWatch:
    """Tells when as many workers as asked for have sent a heartbeat since the first look."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._broker: Broker | None = None
        self._start_ms = 0

    def __call__(self) -> bool:
        """Whether they have; False while the broker cannot be reached."""
        try:
            if self._broker is None:
                self._broker = Broker.connect(self._settings)
                self._start_ms = self._broker.now_ms()
            seen = self._broker.living.workers(self._settings.lease_ms)
        except BrokerUnavailableError:
            return False
        return sum(worker.seen_ms >= self._start_ms for worker in seen) >= self._settings.workers


def headrace_child(
    name: str,
    arguments: Sequence[str],
    settings: Settings,
    grace_s: float,
    *,
    ready: WorkerWatch | None = None,
    restart: bool = True,
) -> ChildSpec:
    """A command of this program as a child; settings travel in its environment, where no process list shows them."""
    # -P: the folder that a user works in may hold a kernels/ or a redis.py of its own.
    argv = [sys.executable, "-P", "-m", "headrace", *arguments]
    return ChildSpec(name, argv, settings.to_environ(), grace_s, ready=ready, restart=restart)
