"""``submit``: a producer's request enters its stream."""

from dataclasses import dataclass
from typing import Literal

from headrace.config import Settings
from headrace.errors import InvalidRequestError
from headrace.keys import RequestStream
from headrace.moves.call import Argument
from headrace.moves.reap import RECHECK_MS
from headrace.moves.reply import read_texts
from headrace.wire import Encoding


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a submission: ``ok``, ``known`` (that id is here already), ``cancelled`` or ``overloaded``."""

    verdict: Literal["ok", "known", "cancelled", "overloaded"]
    detail: str


@dataclass(frozen=True, slots=True)
class SubmitCall:
    """A producer's request enters its stream.

    Attributes:
        request_id: its name, made by the producer.
        stream: lane and tenant.
        encoding: of the body.
        body: the encoded fields.
        cost_tokens: an estimate of prompt plus output, until the scheduler has counted.
        ttl_ms: life of the result.
        reply_to: name of a reply stream, or "".
        settings: backlog limits.
    """

    request_id: str
    stream: RequestStream
    encoding: Encoding
    body: bytes
    cost_tokens: int
    ttl_ms: int
    reply_to: str
    settings: Settings
    move: Literal["submit"] = "submit"

    def arguments(self) -> list[Argument]:
        """See ``lua/submit.lua``."""
        limits = self.settings
        stream = self.stream
        return [self.request_id, stream.suffix, stream.lane, self.encoding, self.body, self.cost_tokens,
                limits.max_queued_requests, limits.max_queued_tokens, self.ttl_ms, stream.tenant, self.reply_to,
                RECHECK_MS]  # fmt: skip

    def read(self, reply: object) -> Submitted:
        """Of ``{verdict, detail}``.

        Raises:
            InvalidRequestError: no scheduler of the queue serves the tenant.
        """
        verdict, detail = read_texts(reply)
        if verdict == "unserved":
            raise InvalidRequestError(
                f"tenant: no scheduler of this queue serves {detail}", field="tenant", request_id=self.request_id
            )
        return Submitted(verdict, detail)  # type: ignore[arg-type]
