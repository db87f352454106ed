"""A producer's line to one queue: opened at its first use, patient, and shared by a client and its handles."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from headrace.broker import Broker
from headrace.config import Settings
from headrace.connection import open_client
from headrace.errors import BrokerUnavailableError, ConfigurationError, OverloadedError
from headrace.keys import RequestStream
from headrace.moves import CancelCall, Submitted
from headrace.producer.durability import FSYNC_SETTINGS, cannot_check, check_fsync
from headrace.producer.patience import Patience
from headrace.producer.submission import Submission, Via, accepted_of

T = TypeVar("T")


class Line:
    """Sends requests and cancellations. Safe to share between threads."""

    def __init__(self, settings: Settings, via: Via, patience_s: float) -> None:
        self.settings = settings
        self.via: Via = via
        self._patience_s = patience_s
        self._opening = threading.Lock()
        self._broker: Broker | None = None

    def broker(self) -> Broker:
        """The broker; the first call connects.

        Raises:
            BrokerUnavailableError: no server, or one too old.
            ConfigurationError: the server would evict requests, or refuses these credentials.
            ContractVersionError: the queue is served under another version.
        """
        with self._opening:
            if self._broker is None:
                # A tenant who may only XADD and XREAD is not permitted to ask what the server is like.
                self._broker = (
                    Broker(open_client(self.settings), self.settings)
                    if self.via == "xadd"
                    else Broker.connect(self.settings)
                )
            return self._broker

    @property
    def was_connected(self) -> bool:
        """Whether a request may have been sent: a server has answered, or nobody may ask what it is like."""
        return self._broker is not None

    def send(self, submission: Submission) -> Submitted:
        """Submit once.

        Raises:
            OverloadedError: the backlog or the server's memory is full.
            ConfigurationError: ``fsync`` was asked for, and is not what the server gives.
        """
        broker = self.broker()
        if submission.durability == "fsync":
            self._check_fsync(broker)
        try:
            if submission.via == "xadd":
                entry = broker.add_request(
                    submission.stream, submission.request_id, submission.encoding, submission.body
                )
                return Submitted("ok", entry)
            return submission.accepted(broker.run(submission.call(self.settings)))
        except OverloadedError as error:
            raise OverloadedError(str(error), request_id=submission.request_id) from error

    def send_all(self, submissions: Sequence[Submission]) -> tuple[int, ...]:
        """Submit together, in one round trip; return the places of those that are in the queue.

        Raises what ``send`` does; OverloadedError where all are refused.
        """
        first = submissions[0]
        if first.durability == "fsync" or first.via == "xadd":
            self.send(first)
            return (0,)
        calls = [submission.call(self.settings) for submission in submissions]
        return accepted_of(submissions, self.broker().run_all(calls))

    def cancel(self, request_id: str, stream: RequestStream, via: Via) -> str:
        """Ask for a request's end; return the state that it was in, "" where ``via`` does not tell."""

        def once() -> str:
            broker = self.broker()
            if via == "xadd":
                broker.add_cancellation(stream, request_id)
                return ""
            return broker.run(CancelCall(request_id, self.settings))

        return self.persist(once)

    def _check_fsync(self, broker: Broker) -> None:
        try:
            found = {name: broker.setting(name) for name in FSYNC_SETTINGS}
        except ConfigurationError as error:
            raise cannot_check(error) from error
        check_fsync(found)

    def persist(self, attempt: Callable[[], T]) -> T:
        """Do what may be done twice until it succeeds, as long as the client's patience for a server lasts.

        Raises:
            BrokerUnavailableError: it did not come back in time.
        """
        patience = Patience(time.monotonic() + self._patience_s)
        while True:
            try:
                return attempt()
            except BrokerUnavailableError:
                if patience.left_s(time.monotonic()) == 0:
                    raise
            time.sleep(patience.pause_s(time.monotonic()))

    def close(self) -> None:
        """Close every connection; the next use opens new ones."""
        with self._opening:
            if self._broker is not None:
                self._broker.close()
                self._broker = None
