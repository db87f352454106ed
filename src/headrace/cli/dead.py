"""``headrace dead``: requests that were given up because their workers died of them."""

import re
import sys
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Annotated, Any

import typer

from headrace.broker import Broker, Entry
from headrace.cli.options import Json, Model, Port, Queue, RedisUrl, Set, load_settings
from headrace.cli.printing import print_json
from headrace.config import Settings
from headrace.errors import BrokerUnavailableError, ConfigurationError, DecodeError, HeadraceError, ModelError
from headrace.job import Job, SamplingParams
from headrace.keys import LANES, Lane, child_index
from headrace.producer import Client
from headrace.wire import Encoding

app = typer.Typer(help="Requests given up as poison: look, send again, forget.", no_args_is_help=True)

#: More than the stream is trimmed to.
_ALL = 1_000_000
#: Of a request's id.
_MAX_ID_CHARS = 128

Names = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Requests, or entries of the stream.")]
All = Annotated[bool, typer.Option("--all", help="All of them.")]


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


@app.command("list")
def list_dead(
    json_: Json = False,
    redis_url: RedisUrl = None,
    port: Port = None,
    model: Model = None,
    queue: Queue = None,
    set_: Set = None,
) -> None:
    """List them, newest first."""
    settings = load_settings(set_, redis_url=redis_url, port=port, model=model, queue=queue)
    for request in _read_all(Broker.connect(settings)):
        if json_:
            print_json({"entry": request.entry, "id": request.request_id, "why": request.why, "job": _job(request)})
        else:
            print(f"{request.entry}  {request.request_id}  {request.why}")


@app.command("replay")
def replay_dead(
    names: Names = None,
    all_: All = False,
    json_: Json = False,
    redis_url: RedisUrl = None,
    port: Port = None,
    model: Model = None,
    queue: Queue = None,
    set_: Set = None,
) -> None:
    """Send them again, under new ids. An entry goes once the queue has taken its new request.

    One that cannot be sent again stays, and the others go on; the exit status is then 1.
    """
    settings = load_settings(set_, redis_url=redis_url, port=port, model=model, queue=queue)
    broker = Broker.connect(settings)
    chosen = _choose(_read_all(broker), names, is_all=all_)
    revisions = {str(worker.details.get("revision")) for worker in broker.workers(settings.lease_ms)}
    num_failed = 0
    with Client(settings) as client:
        for request in reversed(chosen):  # the oldest first
            try:
                manner = _replay(client, broker, request, revisions)
            except BrokerUnavailableError:
                raise  # the others would wait for it as long
            except HeadraceError as error:
                num_failed += 1
                _report(request, f"{request.request_id} stays in dead: {error}", as_json=json_, is_error=True)
                continue
            broker.drop_dead([request.entry])
            if not manner.is_known:
                print(
                    f"headrace: lane, reply stream, ttl and encoding of {request.request_id} are not known any more: "
                    f"{request.next_id} has the defaults",
                    file=sys.stderr,
                )
            _report(request, f"{request.request_id} is sent again as {request.next_id}", as_json=json_, is_error=False)
    if num_failed:
        raise typer.Exit(1)


def _report(request: DeadRequest, sentence: str, *, as_json: bool, is_error: bool) -> None:
    """Say what became of one request; an error goes to stderr, and where JSON is read, there as well."""
    if is_error:
        print(f"headrace: {sentence}", file=sys.stderr)
    if as_json:
        outcome = {"error": sentence} if is_error else {"replayed_as": request.next_id}
        print_json({"id": request.request_id} | outcome)
    elif not is_error:
        print(sentence)


@app.command("drop")
def drop_dead(
    names: Names = None,
    all_: All = False,
    json_: Json = False,
    redis_url: RedisUrl = None,
    port: Port = None,
    model: Model = None,
    queue: Queue = None,
    set_: Set = None,
) -> None:
    """Forget them."""
    settings = load_settings(set_, redis_url=redis_url, port=port, model=model, queue=queue)
    broker = Broker.connect(settings)
    chosen = _choose(_read_all(broker), names, is_all=all_)
    num_dropped = broker.drop_dead([request.entry for request in chosen])
    if json_:
        print_json({"dropped": num_dropped})
    else:
        print(f"{num_dropped} dropped")


def _read_all(broker: Broker) -> list[DeadRequest]:
    return [DeadRequest.read(entry) for entry in broker.dead_requests(_ALL)]


def _choose(requests: list[DeadRequest], names: list[str] | None, *, is_all: bool) -> list[DeadRequest]:
    if is_all == bool(names):
        raise ConfigurationError("name the requests, or give --all")
    known = {name for request in requests for name in (request.entry, request.request_id)}
    if missing := [name for name in names or () if name not in known]:
        raise ConfigurationError(f"not in dead: {', '.join(missing)}")
    return [r for r in requests if is_all or {r.entry, r.request_id} & set(names or ())]


def _replay(client: Client, broker: Broker, request: DeadRequest, revisions: set[str]) -> Manner:
    """Send one again; return how it was asked."""
    job = Job.decode(request.job)
    if revisions and job.revision not in revisions:
        raise ModelError(f"its tokens are of revision {job.revision}, the workers serve {', '.join(sorted(revisions))}")
    if (index := child_index(request.request_id)) is not None:
        job = job.of_child(index)
    manner = Manner.read(broker, request.request_id)
    client.submit(
        list(job.prompt_ids),
        request_id=request.next_id,
        lane=manner.lane,
        tenant=manner.tenant,
        encoding=manner.encoding,
        **(_fields(job.params) | manner.fields),
    )
    return manner


def _fields(params: SamplingParams) -> dict[str, Any]:
    """Sampling parameters as a request spells them."""
    plain: dict[str, Any] = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(params).items()}
    bias = {str(token_id): bias for token_id, bias in params.logit_bias}
    return plain | {"logit_bias": bias, "bad_words": [list(word) for word in params.bad_words]}


def _tenant(request_id: str, settings: Settings) -> str:
    prefix = request_id.partition(":")[0]
    return prefix if prefix in settings.tenants and ":" in request_id else ""


def _job(request: DeadRequest) -> dict[str, Any] | None:
    try:
        return asdict(Job.decode(request.job))
    except DecodeError:
        return None
