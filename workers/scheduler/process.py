"""The scheduler process: admit, dispatch, reap, for ever.

Several may run; one leads and the others stand by. Killed at any moment it loses nothing, because all it knows is in
Redis: the next one goes on with the same window.
"""

import logging
import math
import os
import secrets
import signal
import socket
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from headrace.broker import Broker
from headrace.config import Settings
from headrace.errors import BrokerUnavailableError, OverloadedError
from headrace.faults import arm, fault_point
from headrace.keys import LANES, RequestStream
from headrace.moves import Admission, AdmitCall, ReapCall, admit_parts
from headrace.workers.metrics import serving
from headrace.workers.model_store.store import ModelFolder, default_cache_dir, resolve
from headrace.workers.scheduler.admission import Admits, Admitter
from headrace.workers.scheduler.dispatcher import Dispatcher
from headrace.workers.scheduler.encoder_admission import EncoderAdmitter
from headrace.workers.scheduler.metrics import Tally, gather
from headrace.workers.text.encoder_facts import is_encoder
from headrace.workers.text.encoder_tokenizer import EncoderTokenizer
from headrace.workers.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

#: A dead leader is replaced within this time; it renews several times as often.
_LEADER_LEASE_MS = 1_000
_MAX_TICK_MS = 250
_REAP_LIMIT = 256
_FIT_INTERVAL_S = 1.0
_PAUSE_S = 0.25
#: An encoder's requests are short, leave together, and hold no memory of their own.
ENCODER_BATCH_ROWS = 64
#: Entries that are judged, and tokenised, in one go.
_SLICE = 256
_MAX_BEAT_INTERVAL_S = 1.0
#: A heartbeat is kept this long, for those who ask what has become of a scheduler.
_HEARTBEAT_LIFE_LEASES = 6
#: A worker that missed this many heartbeats (one a third of a lease) no longer limits the size of batches.
_WORKER_LIFE_LEASES = 1


class Scheduler:
    """The loop over one queue's streams; ``for_encoders`` as of ``Dispatcher``."""

    def __init__(self, broker: Broker, admitter: Admits, settings: Settings, *, for_encoders: bool = False) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._broker = broker
        self._admitter = admitter
        self._dispatcher = Dispatcher(broker, settings, for_encoders=for_encoders)
        self._settings = settings
        self._streams = [RequestStream(lane, tenant) for lane in LANES for tenant in ("", *settings.tenants)]
        self._tick_ms = max(20, min(_MAX_TICK_MS, settings.lease_ms // 10))
        self._wake_entry = "0-0"
        self._next_reap_s = 0.0
        self._next_fit_s = 0.0
        self._next_beat_s = 0.0
        self.tally = Tally()
        self._tenants_wait = False
        self._stopping = False
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="admit")

    def stop(self) -> None:
        """Make ``run`` return after the step at hand; may be called from a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Schedule until ``stop``; the broker may come and go."""
        leading, reachable = False, True
        served = self._serve_tenants()
        while not self._stopping:
            try:
                served = served or self._serve_tenants()
                leads = self._broker.leadership.take(self.name, _LEADER_LEASE_MS)
                fault_point("leader.answered")
                self._beat(leads=leads)
                if leads:
                    self.step()
                else:
                    time.sleep(self._tick_ms / 1000)
                if leads != leading or not reachable:
                    log.info("%s for queue %s", "leading" if leads else "standing by", self._settings.queue_name)
                leading, reachable = leads, True
            except BrokerUnavailableError as error:
                if reachable:
                    log.warning("waiting for the broker: %s", error)
                reachable = False
                time.sleep(_PAUSE_S)
        if reachable:
            if leading:
                self._broker.leadership.resign(self.name)
            fault_point("resign.done")
            self._broker.living.leave("scheduler", self.name)
            fault_point("leave.done")

    def _serve_tenants(self) -> bool:
        """Enter this scheduler's tenants; False where a full server has no room for a new one's name."""
        try:
            self._broker.serve_tenants(self._streams)
        except OverloadedError as error:
            if not self._tenants_wait:
                log.warning("new tenants have to wait: %s", error)
            self._tenants_wait = True
            return False
        return True

    def _beat(self, *, leads: bool) -> None:
        """Several times a lease, say that this scheduler lives: one that stands by is healthy, too."""
        self.tally.leads = leads
        lease_ms, now_s = self._settings.lease_ms, time.monotonic()
        if now_s < self._next_beat_s:
            return
        self._next_beat_s = now_s + min(lease_ms / 3000, _MAX_BEAT_INTERVAL_S)
        details = {"host": socket.gethostname(), "scheduler_pid": os.getpid(), "leads": leads}
        self._broker.living.beat("scheduler", self.name, details, lease_ms * _HEARTBEAT_LIFE_LEASES)
        fault_point("beat.done")

    def step(self) -> None:
        """Wait for something to do, and do it: one round of admit, dispatch and reap."""
        patience_ms = math.ceil(min(self._tick_ms, self._dispatcher.wait_ms))
        self._wake_entry = self._broker.wait_for_requests(self._streams, self._wake_entry, patience_ms)
        fault_point("step.woken")
        now_s = time.monotonic()
        if now_s >= self._next_fit_s or not self._dispatcher.has_workers:
            self._next_fit_s = now_s + _FIT_INTERVAL_S
            life_ms = self._settings.lease_ms * _WORKER_LIFE_LEASES
            workers = self._broker.living.workers(life_ms)
            fault_point("workers.read")
            tables = self._broker.costs.tables()
            fault_point("costs.read")
            self._dispatcher.fit(workers, tables)
            fault_point("fit.done")
            for worker_class in self._broker.costs.forget(self._settings.cost_life_ms):
                log.info("forgot what batches cost on %s: its last worker is long gone", worker_class)
            fault_point("forget.done")
        if now_s >= self._next_reap_s:
            self._next_reap_s = now_s + self._tick_ms / 1000
            fault_point("reap.due")
            self._reap()
            fault_point("reap.done")
        try:
            self._admit()
        except OverloadedError as error:
            # The entries stay in their streams; running requests must go on to end and make room.
            log.warning("admitting nothing for now: %s", error)
            fault_point("admit.refused")
            time.sleep(self._tick_ms / 1000)
        self.tally.num_dispatched += self._dispatcher.dispatch()
        fault_point("step.done")

    def _admit(self) -> None:
        """Judge a window in slices; while one is judged, the server admits the one before it."""
        windows = self._broker.oldest_requests(self._streams, self._settings.window)
        fault_point("requests.read")
        now_ms = self._broker.now_ms() if any(windows) else 0
        fault_point("clock.read")
        under_way: Future[None] | None = None
        for stream, entries in zip(self._streams, windows, strict=True):
            for begin in range(0, len(entries), _SLICE):
                admissions = self._admitter.judge(stream, entries[begin : begin + _SLICE], now_ms)
                fault_point("slice.judged")
                if under_way is not None:
                    under_way.result()
                under_way = self._sender.submit(self._send, stream, admissions)
        if under_way is not None:
            under_way.result()

    def _send(self, stream: RequestStream, admissions: Sequence[Admission]) -> None:
        calls = [AdmitCall(stream, part, self._settings) for part in admit_parts(admissions)]
        fault_point("admit.begun")
        verdicts = [verdict for answer in self._broker.run_all(calls) for verdict in answer]
        fault_point("admit.done")
        for admission, verdict in zip(admissions, verdicts, strict=True):
            self.tally.verdicts[verdict] += 1
            if verdict not in ("queued", "cached"):
                log.info("%s %s", verdict, admission.request_id)

    def _reap(self) -> None:
        reaped = self._broker.run(ReapCall(_REAP_LIMIT, self._settings))
        self.tally.add(reaped)
        if reaped.num_requeued or reaped.num_expired or reaped.num_dead:
            counts = (reaped.num_requeued, reaped.num_expired, reaped.num_dead)
            log.info("reaped: %d requeued, %d expired, %d dead", *counts)
        if reaped.num_strays:
            log.warning("%d ids left `ready`: no queued request was behind them", reaped.num_strays)


def admitter_of(folder: ModelFolder, settings: Settings) -> Admits:
    """The admitter for a model: what may be asked follows from what it is.

    Raises:
        ModelError: the folder cannot be read.
    """
    if is_encoder(folder.path):
        return EncoderAdmitter(EncoderTokenizer.from_folder(folder.path), folder.revision, settings)
    return Admitter(Tokenizer.from_folder(folder.path), folder.revision, settings)


def run(settings: Settings) -> None:
    """Run a scheduler until SIGTERM or SIGINT.

    Raises:
        ModelError: the model's files are not here.
        BrokerUnavailableError: no server answers at the start (later the scheduler waits for it).
        ContractVersionError: the queue is served under another version of the contract.
        ConfigurationError: ``HEADRACE_FAULT`` asks for a fault that there is not.
    """
    arm(os.environ)
    folder = resolve(settings.model, settings.cache_dir or default_cache_dir())
    for_encoders = is_encoder(folder.path)
    if for_encoders and not settings.max_batch_rows:
        settings = settings.model_copy(update={"max_batch_rows": ENCODER_BATCH_ROWS})
    admitter = admitter_of(folder, settings)
    broker = Broker.connect(settings)
    broker.adopt_contract()
    scheduler = Scheduler(broker, admitter, settings, for_encoders=for_encoders)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: scheduler.stop())
    log.info("scheduler %s, model %s, revision %s", scheduler.name, folder.name, folder.revision)
    with serving(settings, partial(gather, broker=broker, tally=scheduler.tally)):
        scheduler.run()
    broker.close()
