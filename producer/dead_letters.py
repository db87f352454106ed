"""Requests that were given up as poison, and how they are sent again. Used by the command line and by jobs on RQ."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

from headrace.broker import Broker
from headrace.config import Settings
from headrace.encoder_job import EncoderJob
from headrace.entries import Entry
from headrace.errors import BrokerUnavailableError, ConfigurationError, DecodeError, HeadraceError, ModelError
from headrace.job import Job, SamplingParams
from headrace.keys import LANES, Lane, child_index
from headrace.producer.client import Client
from headrace.wire import Encoding

#: More than the stream is trimmed to.
_ALL = 1_000_000
#: Of a request's id.
_MAX_ID_CHARS = 128


@dataclass(frozen=True, slots=True)
class DeadRequest:
    """One entry of ``dead``.

    Attributes:
        entry: its id in the stream.
        request_id: whose.
        why: a sentence.
        job: what the workers were to compute; b"" if it is lost.
    """

    entry: str
    request_id: str
    why: str
    job: bytes

    @classmethod
    def read(cls, entry: Entry) -> "DeadRequest":
        """Of a stream's entry."""
        texts = {name: entry.fields.get(name, b"").decode(errors="replace") for name in (b"id", b"why")}
        return cls(entry.id, texts[b"id"], texts[b"why"], entry.fields.get(b"job", b""))

    @property
    def next_id(self) -> str:
        """The id under which it is sent again: always the same one, so that sending twice asks once.

        Of several results only the dead one is sent again, as a request of its own. A name that would become too long
        is cut, and a hash of all of it put in the place of what is lost.
        """
        name = self.request_id.replace("/", ".")
        root, number = re.match(r"(.*?)(?:\.r([0-9]{1,9}))?\Z", name, re.DOTALL).groups()  # type: ignore[union-attr]
        suffix = f".r{int(number or 0) + 1}"
        if len(root) + len(suffix) > _MAX_ID_CHARS:
            mark = "-" + blake2b(root.encode(), digest_size=8).hexdigest()
            root = root[: _MAX_ID_CHARS - len(suffix) - len(mark)] + mark
        return root + suffix


@dataclass(frozen=True, slots=True)
class Manner:
    """How a request was asked, besides its job.

    Attributes:
        lane: where it came in.
        tenant: whose it is; "" nobody's.
        encoding: of its result.
        fields: ``reply_to`` and ``ttl_ms``, as far as they are known.
        is_known: its hash was still there.
    """

    lane: Lane
    tenant: str
    encoding: Encoding
    fields: dict[str, Any]
    is_known: bool

    @classmethod
    def read(cls, broker: Broker, request_id: str) -> "Manner":
        """Of the request's hash, which lives as long as its result; without one, the defaults."""
        found = broker.request_fields(request_id)
        lane, encoding = found.get("lane"), found.get("enc")
        # A tombstone that took a namesake's place has neither.
        is_known = lane in LANES and encoding in ("json", "mp")
        if not is_known:
            return cls("normal", _tenant(request_id, broker.settings), "mp", {}, is_known=False)
        fields: dict[str, Any] = {"reply_to": found["reply"]} if found.get("reply") else {}
        if found.get("ttl"):
            fields["ttl_ms"] = int(float(found["ttl"]))
        return cls(lane, found.get("tenant", ""), encoding, fields, is_known=True)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of one dead request.

    Attributes:
        request: as it was found.
        error: why it stays in ``dead``; None: it was sent again as ``request.next_id``, and its entry is gone.
        manner: how it was asked, where it was sent again.
    """

    request: DeadRequest
    error: HeadraceError | None
    manner: Manner | None


def read_dead(broker: Broker) -> list[DeadRequest]:
    """All of them, newest first."""
    return [DeadRequest.read(entry) for entry in broker.dead_requests(_ALL)]


def choose(requests: Sequence[DeadRequest], names: Sequence[str] | None, *, is_all: bool) -> list[DeadRequest]:
    """Those that are meant: by the ids of requests or of entries, or all.

    Raises:
        ConfigurationError: neither names nor all were given, or both, or a name is not there.
    """
    if is_all == bool(names):
        raise ConfigurationError("name the requests, or give --all")
    known = {name for request in requests for name in (request.entry, request.request_id)}
    if missing := [name for name in names or () if name not in known]:
        raise ConfigurationError(f"not in dead: {', '.join(missing)}")
    return [r for r in requests if is_all or {r.entry, r.request_id} & set(names or ())]


def replay(client: Client, broker: Broker, requests: Sequence[DeadRequest]) -> Iterator[Replayed]:
    """Send requests again under new ids, the oldest first; an entry goes once the queue has taken its new request.

    One that cannot be sent again stays, and the others go on. Done twice it asks once: the new ids are always the same.

    Raises:
        BrokerUnavailableError: no server answers; the rest would wait for it as long.
    """
    revisions = {str(worker.details.get("revision")) for worker in broker.living.workers(broker.settings.lease_ms)}
    for request in reversed(requests):
        try:
            manner = _send(client, broker, request, revisions)
        except BrokerUnavailableError:
            raise
        except HeadraceError as error:
            yield Replayed(request, error, None)
            continue
        broker.drop_dead([request.entry])
        yield Replayed(request, None, manner)


def _send(client: Client, broker: Broker, request: DeadRequest, revisions: set[str]) -> Manner:
    """Send one again; return how it was asked."""
    job = decode_job(request.job)
    if revisions and job.revision not in revisions:
        raise ModelError(f"its tokens are of revision {job.revision}, the workers serve {', '.join(sorted(revisions))}")
    if isinstance(job, EncoderJob):
        fields = _encoder_fields(job)
    else:
        if (index := child_index(request.request_id)) is not None:
            job = job.of_child(index)
        fields = {"prompt": list(job.prompt_ids), **_fields(job.params)}
    manner = Manner.read(broker, request.request_id)
    client.submit(
        request_id=request.next_id,
        lane=manner.lane,
        tenant=manner.tenant,
        encoding=manner.encoding,
        **(fields | manner.fields),
    )
    return manner


def decode_job(data: bytes) -> Job | EncoderJob:
    """Read a job of either kind.

    Raises:
        DecodeError: it is none of this version.
    """
    try:
        return Job.decode(data)
    except DecodeError:
        return EncoderJob.decode(data)


def _encoder_fields(job: EncoderJob) -> dict[str, Any]:
    """A request to an encoder as its job spells it."""
    if job.task == "rerank" or job.firsts != job.lengths:
        raise ConfigurationError(f"of {job.task}, only the tokens of texts put together are left: submit it anew")
    params = job.params
    fields: dict[str, Any] = {"task": job.task, "input": [list(text) for text in job.texts()]}
    if job.task == "embed":
        formats = {None: None, True: "float", False: "base64"}
        options = {"pooling": params.pooling, "normalize": params.normalize, "dimensions": params.dimensions or None}
        return fields | options | {"encoding_format": formats[params.floats]}
    return fields | {"top_k": params.top}


def _fields(params: SamplingParams) -> dict[str, Any]:
    """Sampling parameters as a request spells them."""
    plain: dict[str, Any] = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(params).items()}
    bias = {str(token_id): bias for token_id, bias in params.logit_bias}
    return plain | {"logit_bias": bias, "bad_words": [list(word) for word in params.bad_words]}


def _tenant(request_id: str, settings: Settings) -> str:
    prefix = request_id.partition(":")[0]
    return prefix if prefix in settings.tenants and ":" in request_id else ""
