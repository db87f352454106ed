"""Engine to rows: takes what an engine says."""

from headrace.wire import Failure, TokenLogprobs
from headrace.workers.channel import Costs, Encoded, Tokens
from headrace.workers.courier.desk import Desk
from headrace.workers.courier.encoder_row import EncoderRow
from headrace.workers.courier.engine_link import EngineLink
from headrace.workers.courier.reporter import Reporter
from headrace.workers.courier.row import Row
from headrace.workers.courier.watchdog import Watchdog


class Taker:
    """Gives tokens to their rows, and costs to the reporter."""

    def __init__(self, desk: Desk, reporter: Reporter, watchdog: Watchdog) -> None:
        self._desk = desk
        self._reporter = reporter
        self._watchdog = watchdog

    async def run(self, link: EngineLink) -> None:
        """Take one engine's messages until it has gone."""
        async for message in link.messages:
            self._watchdog.hear()
            if isinstance(message, Tokens):
                await self._take(link, message)
            elif isinstance(message, Encoded):
                await self._take_answers(link, message)
            elif isinstance(message, Costs):
                self._reporter.tell_costs(link.ready.worker_class, message.table)

    async def _take(self, link: EngineLink, message: Tokens) -> None:
        """Give one step's tokens to their rows."""
        desk = self._desk
        self._reporter.tell_runs(desk.ledger.step(message))
        stopped: list[int] = []
        logprobs = {number: TokenLogprobs(logprob, top) for number, logprob, top in message.logprobs}
        for number, token_id, finish in message.tokens:
            row = desk.outbox.find(number)
            if not isinstance(row, Row):
                continue
            if finish == "error":
                row.end("error", Failure("worker", message.error))
                continue
            row.push(token_id, logprobs.get(number))
            desk.num_published += 1
            if finish:
                row.end(finish)
            elif row.ended:
                row.computing = False
                stopped.append(number)
        await link.drop(stopped + desk.expire())
        desk.announce()

    async def _take_answers(self, link: EngineLink, message: Encoded) -> None:
        """Give one step's answers to their rows."""
        desk = self._desk
        self._reporter.tell_runs(desk.ledger.step(message))
        desk.num_published += message.num_tokens
        for number, found, error in message.answers:
            row = desk.outbox.find(number)
            if not isinstance(row, EncoderRow):
                continue
            if error:
                row.end("error", Failure("worker", error))
            else:
                row.answer(found)
        await link.drop(desk.expire())
        desk.announce()
