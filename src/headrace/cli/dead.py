"""``headrace dead``: requests that were given up because their workers died of them."""

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from headrace.broker import Broker
from headrace.cli.options import Json, Model, Port, Queue, RedisUrl, Set, load_settings
from headrace.cli.printing import print_json
from headrace.encoder_job import EncoderJob
from headrace.errors import DecodeError
from headrace.producer import Client
from headrace.producer.dead_letters import DeadRequest, choose, decode_job, read_dead, replay

app = typer.Typer(help="Requests given up as poison: look, send again, forget.", no_args_is_help=True)

Names = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Requests, or entries of the stream.")]
All = Annotated[bool, typer.Option("--all", help="All of them.")]


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
    for request in read_dead(Broker.connect(settings)):
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
    chosen = choose(read_dead(broker), names, is_all=all_)
    num_failed = 0
    with Client(settings) as client:
        for found in replay(client, broker, chosen):
            request = found.request
            if found.error is not None:
                num_failed += 1
                _report(request, f"{request.request_id} stays in dead: {found.error}", as_json=json_, is_error=True)
                continue
            if found.manner is not None and not found.manner.is_known:
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
    chosen = choose(read_dead(broker), names, is_all=all_)
    num_dropped = broker.drop_dead([request.entry for request in chosen])
    if json_:
        print_json({"dropped": num_dropped})
    else:
        print(f"{num_dropped} dropped")


def _job(request: DeadRequest) -> dict[str, Any] | None:
    try:
        job = decode_job(request.job)
    except DecodeError:
        return None
    fields = asdict(job)
    del fields["cache_key"]
    if isinstance(job, EncoderJob):
        fields["token_ids"] = [list(text) for text in job.texts()]
    return fields
