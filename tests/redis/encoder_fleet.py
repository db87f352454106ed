"""A fleet for an encoder in one thread: the real scheduler, intake, rows and engine over the moves, and no model."""

import asyncio
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from headrace.broker import Broker
from headrace.config import Settings
from headrace.errors import BrokerUnavailableError
from headrace.moves import ClaimCall, EmitCall, RememberCall
from headrace.testing.stub_encoder import WIDTH, StubEncoder
from headrace.testing.words import encoder_tokenizer
from headrace.workers.channel import Encode, EncodeRow
from headrace.workers.courier.encoder_intake import EncoderIntake
from headrace.workers.courier.encoder_row import EncoderRow
from headrace.workers.courier.outbox import Outbox
from headrace.workers.encoder.engine import EncoderEngine
from headrace.workers.encoder.findings import Findings
from headrace.workers.scheduler.encoder_admission import EncoderAdmitter
from headrace.workers.scheduler.process import Scheduler

MAX_LENGTH = 32
LABELS = ("no", "yes")


@dataclass
class EncoderFleet:
    """Runs until the ``with`` ends; survives its broker.

    Attributes:
        settings: of the queue.
        paused: requests are admitted and dispatched, and nobody computes them.
    """

    settings: Settings
    paused: bool = False

    def __post_init__(self) -> None:
        self.broker = Broker.connect(self.settings)
        self.runner = StubEncoder()
        tokenizer = encoder_tokenizer(MAX_LENGTH, labels=LABELS)
        self._scheduler = Scheduler(self.broker, EncoderAdmitter(tokenizer, "r1", self.settings), self.settings)
        self._engine = EncoderEngine(self.runner, Findings(WIDTH, normalises=False), step_tokens=64)
        self._intake = EncoderIntake(tokenizer, "w", "r1")
        self._outbox = Outbox(renew_after_s=0.1)
        self._nonce = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="encoder fleet", daemon=True)
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self.broker.adopt_contract()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.broker.close()
        if self._error is not None and kind is None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._scheduler.step()
                    if not self.paused:
                        self._claim()
                        self._work()
                except BrokerUnavailableError:
                    self._stop.wait(0.05)
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it
            self._error = error

    def _claim(self) -> None:
        self._nonce += 1
        lease_ms = self.settings.lease_ms
        claimed = self.broker.run(ClaimCall("w", self._nonce, 64, 1 << 20, 64, 1 << 20, 0, lease_ms))
        adds: list[EncodeRow] = []
        for row in claimed.rows:
            start = asyncio.run(self._intake.start(row))
            self._outbox.add(start.row)
            adds += [start.add] if isinstance(start.add, EncodeRow) else []
        if adds:
            self._engine.add(Encode(tuple(adds)))

    def _work(self) -> None:
        while self._engine.has_rows:
            for number, found, error in self._engine.step().answers:
                row = self._outbox.find(number)
                assert isinstance(row, EncoderRow)
                assert not error
                row.answer(found)
        while flush := self._outbox.next_flush(0.0):
            answer = self.broker.run(EmitCall([emit for _, emit in flush], self.settings))
            for row in self._outbox.settle(flush, answer):
                whole = row.whole()
                if row.cache_key and whole is not None:
                    self.broker.run(
                        RememberCall(row.cache_key, 0, 0, "stop", whole.encode(row.encoding), self.settings)
                    )
