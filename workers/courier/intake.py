"""Claimed requests become rows: fresh ones as they are, others from where the last worker left them."""

import logging
from dataclasses import dataclass
from typing import Protocol

from headrace.async_broker import AsyncBroker
from headrace.errors import DecodeError
from headrace.job import Job
from headrace.keys import child_index
from headrace.moves import ClaimedRow
from headrace.wire import Chunk, Failure
from headrace.workers.channel import Add, EncodeRow
from headrace.workers.courier.held_row import HeldRow
from headrace.workers.courier.row import Row
from headrace.workers.text.detokenizer import Detokenizer
from headrace.workers.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """A row, and what tells the engine to begin it; None where the row has ended before it began."""

    row: HeldRow
    add: Add | EncodeRow | None


class TakesIn(Protocol):
    """Makes rows for one connection to an engine; an intake for each kind of model."""

    async def start(self, claimed: ClaimedRow) -> Start:
        """Make a row of a claimed request.

        Whatever is wrong with the request itself ends it with an error that says so; nobody else is disturbed.

        Raises:
            BrokerUnavailableError: what was published before cannot be read now.
        """
        ...


class Intake:
    """Makes rows of requests for text."""

    def __init__(self, broker: AsyncBroker, tokenizer: Tokenizer, worker: str, revision: str) -> None:
        self._broker = broker
        self._tokenizer = tokenizer
        self._worker = worker
        self._revision = revision
        self._last_number = 0

    async def start(self, claimed: ClaimedRow) -> Start:
        """See ``TakesIn``."""
        self._last_number += 1
        try:
            job = Job.decode(claimed.job)
            if (index := child_index(claimed.request_id)) is not None:
                job = job.of_child(index)
            published = await self._broker.published_chunks(claimed.request_id) if claimed.num_tokens else []
            return self._resume(claimed, job, published)
        except DecodeError as error:
            log.error("%s cannot be computed: %s", claimed.request_id, error)
            return Start(self._stillborn(claimed, str(error)), None)

    def _resume(self, claimed: ClaimedRow, job: Job, published: list[Chunk]) -> Start:
        if job.revision != self._revision:
            raise DecodeError(f"admitted for model revision {job.revision}, this worker serves {self._revision}")
        output_ids = tuple(token_id for chunk in published for token_id in chunk.ids)
        detokenizer = Detokenizer(self._tokenizer, job.prompt_ids, job.params.stop)
        text = "".join(detokenizer.push(token_id).text for token_id in output_ids)
        if len(output_ids) != claimed.num_tokens or text != "".join(chunk.text for chunk in published):
            raise DecodeError("what was published before does not follow from its tokens")
        row = Row(self._last_number, claimed, self._worker, (job, detokenizer))
        for chunk in published:
            row.resume(chunk)
        return Start(row, Add(row.number, job.prompt_ids, output_ids, job.params))

    def _stillborn(self, claimed: ClaimedRow, message: str) -> Row:
        row = Row(self._last_number, claimed, self._worker)
        row.end("error", Failure("worker", message))
        return row
