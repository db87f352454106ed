"""``headrace dead``: requests that were given up because their workers died of them."""

import re
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from headrace.broker import Broker, Entry
from headrace.cli.options import Json, Model, Port, Queue, RedisUrl, Set, load_settings
from headrace.cli.printing import print_json
from headrace.config import Settings
from headrace.errors import ConfigurationError, DecodeError, HeadraceError, ModelError
from headrace.job import Job, SamplingParams
from headrace.keys import child_index
from headrace.producer import Client

app = typer.Typer(help="Requests given up as poison: look, send again, forget.", no_args_is_help=True)

#: More than the stream is trimmed to.
_ALL = 1_000_000

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

        Of several results only the dead one is sent again, as a request of its own.
        """
        name = self.request_id.replace("/", ".")
        root, number = re.match(r"(.*?)(?:\.r([0-9]+))?$", name, re.DOTALL).groups()  # type: ignore[union-attr]
        return f"{root}.r{int(number or 0) + 1}"


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
    """Send them again, under new ids. An entry goes once the queue has taken its new request."""
    settings = load_settings(set_, redis_url=redis_url, port=port, model=model, queue=queue)
    broker = Broker.connect(settings)
    chosen = _choose(_read_all(broker), names, is_all=all_)
    revisions = {str(worker.details.get("revision")) for worker in broker.workers(settings.lease_ms)}
    with Client(settings) as client:
        for request in reversed(chosen):  # the oldest first
            try:
                _replay(client, request, revisions)
            except HeadraceError as error:
                raise type(error)(f"{request.request_id} stays in dead: {error}") from error
            broker.drop_dead([request.entry])
            if json_:
                print_json({"id": request.request_id, "replayed_as": request.next_id})
            else:
                print(f"{request.request_id} is sent again as {request.next_id}")


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


def _replay(client: Client, request: DeadRequest, revisions: set[str]) -> None:
    job = Job.decode(request.job)
    if revisions and job.revision not in revisions:
        raise ModelError(f"its tokens are of revision {job.revision}, the workers serve {', '.join(sorted(revisions))}")
    if (index := child_index(request.request_id)) is not None:
        job = job.of_child(index)
    tenant = _tenant(request.request_id, client.settings)
    client.submit(list(job.prompt_ids), request_id=request.next_id, tenant=tenant, **_fields(job.params))


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
