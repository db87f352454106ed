"""``admit``: a stream's entries, judged by a scheduler, become queued requests, refusals or cancellations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.config import Settings
from headrace.keys import RequestStream
from headrace.moves.call import Argument
from headrace.moves.reply import read_texts
from headrace.wire import Encoding

#: Results in one call: a script holds the server for its whole run, and one of these costs it 30 us.
MAX_ADMIT_ENTRIES = 64

Admitted = Literal["queued", "cached", "invalid", "overloaded", "expired", "cancelled", "duplicate", "gone"]


@dataclass(frozen=True, slots=True)
class Admission:
    """One entry of a stream, judged.

    Attributes:
        entry: its id in the stream.
        request_id: of the request, or of the one to cancel.
        cancel: the entry withdraws a request instead of bringing one.
        encoding: of the request and of its result.
        refusal: the encoded error of an invalid request, else b"".
        job: the canonical job of a valid one, else b"". A valid one without a job expires: its deadline was over before
            it was tokenised.
        cost_tokens: prompt plus the most it may generate.
        prompt_tokens: of the prompt.
        deadline_ms: after the entry's own time; 0 for none.
        reply_to: name of a reply stream, or "".
        ttl_ms: life of the result.
        num_results: more than one become children, each a request of its own.
        echo: the encoded chunk that heads every result, else b"".
        cache_key: under which its answer may be kept already, else "".
    """

    entry: str
    request_id: str
    cancel: bool
    encoding: Encoding
    refusal: bytes
    job: bytes
    cost_tokens: int
    prompt_tokens: int
    deadline_ms: int
    reply_to: str
    ttl_ms: int
    num_results: int = 1
    echo: bytes = b""
    cache_key: str = ""


@dataclass(frozen=True, slots=True)
class AdmitCall:
    """A stream's oldest entries, in order, at most ``MAX_ADMIT_ENTRIES``."""

    stream: RequestStream
    admissions: Sequence[Admission]
    settings: Settings
    move: Literal["admit"] = "admit"

    def arguments(self) -> list[Argument]:
        """See ``lua/admit.lua``."""
        s, stream = self.settings, self.stream
        weight = s.tenants.get(stream.tenant, 1.0) * s.lane_weights.get(stream.lane, 1.0)
        arguments: list[Argument] = [
            stream.suffix, stream.lane, stream.tenant, weight,
            s.lane_offset_tokens.get(stream.lane, 0), s.max_queued_requests, s.max_queued_tokens, s.tombstone_ttl_ms,
        ]  # fmt: skip
        for a in self.admissions:
            arguments += (a.entry, "cancel" if a.cancel else "request", a.request_id, a.encoding, a.refusal, a.job,
                          a.cost_tokens, a.prompt_tokens, a.deadline_ms, a.reply_to, a.ttl_ms,
                          a.num_results, a.echo, a.cache_key)  # fmt: skip
        return arguments

    def read(self, reply: object) -> list[Admitted]:
        """One verdict an entry."""
        return read_texts(reply)  # type: ignore[return-value]


def admit_parts(admissions: Sequence[Admission]) -> Iterator[Sequence[Admission]]:
    """Cut a stream's entries into calls of ``admit`` of at most ``MAX_ADMIT_ENTRIES`` results, an entry at least."""
    begin = num_results = 0
    for end, admission in enumerate(admissions):
        num_results += admission.num_results
        if num_results > MAX_ADMIT_ENTRIES and end > begin:
            yield admissions[begin:end]
            begin, num_results = end, admission.num_results
    if begin < len(admissions):
        yield admissions[begin:]
