"""``headrace tail``: watch a request that is under way, or read the result of one that has ended."""

from typing import Annotated

import typer

from headrace.cli.options import Json, Model, Port, Queue, RedisUrl, Set, check_id, load_settings
from headrace.cli.printing import print_chunks, timeout_s
from headrace.cli.submit import INTERRUPTED_EXIT
from headrace.producer import Client
from headrace.producer.options import ATTACH_WAIT_S


def tail(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The request.")],
    after: Annotated[int, typer.Option("--after", min=0, help="Skip this many tokens.")] = 0,
    after_chars: Annotated[
        int | None, typer.Option("--after-chars", min=0, help="And characters, where --after lies inside a chunk.")
    ] = None,
    timeout: Annotated[float | None, typer.Option("--timeout-s", help="Stop waiting after this time.")] = None,
    json_: Json = False,
    redis_url: RedisUrl = None,
    port: Port = None,
    model: Model = None,
    queue: Queue = None,
    set_: Set = None,
) -> None:
    """Print a request's text from its beginning, and go on as it grows. Ctrl-C leaves the request alone."""
    settings = load_settings(set_, redis_url=redis_url, port=port, model=model, queue=queue)
    with Client(settings) as client:
        handle = client.attach(check_id(id_), wait_s=ATTACH_WAIT_S)
        stream = handle.stream(after, after_chars=after_chars, timeout_s=timeout_s(timeout))
        try:
            print_chunks(stream, as_json=json_)
        except KeyboardInterrupt as error:
            raise typer.Exit(INTERRUPTED_EXIT) from error
