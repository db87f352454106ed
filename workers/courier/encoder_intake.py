"""Claimed requests to an encoder become rows. Nothing is ever resumed: an answer is published whole or not at all."""

import logging

from headrace.encoder_job import EncoderJob
from headrace.errors import DecodeError
from headrace.moves import ClaimedRow
from headrace.wire import Failure
from headrace.workers.channel import EncodeRow
from headrace.workers.courier.answering import Answering
from headrace.workers.courier.encoder_row import EncoderRow
from headrace.workers.courier.intake import Start
from headrace.workers.text.encoder_tokenizer import EncoderTokenizer

log = logging.getLogger(__name__)


class EncoderIntake:
    """Makes rows for one connection to an engine."""

    def __init__(self, tokenizer: EncoderTokenizer, worker: str, revision: str) -> None:
        self._answering = Answering(tokenizer)
        self._worker = worker
        self._revision = revision
        self._last_number = 0

    async def start(self, claimed: ClaimedRow) -> Start:
        """Make a row of a claimed request; see ``Intake.start``."""
        self._last_number += 1
        try:
            job = EncoderJob.decode(claimed.job)
            if job.revision != self._revision:
                raise DecodeError(f"admitted for model revision {job.revision}, this worker serves {self._revision}")
        except DecodeError as error:
            log.error("%s cannot be computed: %s", claimed.request_id, error)
            row = EncoderRow(self._last_number, claimed, self._worker)
            row.end("error", Failure("worker", str(error)))
            return Start(row, None)
        row = EncoderRow(self._last_number, claimed, self._worker, (job, self._answering))
        return Start(row, EncodeRow(row.number, claimed.job))
