"""``headrace cancel``: end requests, waiting or running."""

from typing import Annotated

import typer

from headrace.cli.options import Model, Port, Queue, RedisUrl, Set, check_id, load_settings
from headrace.producer import Client

_OUTCOMES = {
    "unknown": "not known here; it is cancelled if it still comes",
    "done": "had ended already",
    "tomb": "was cancelled already",
}


def cancel(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Requests to end.")],
    redis_url: RedisUrl = None,
    port: Port = None,
    model: Model = None,
    queue: Queue = None,
    set_: Set = None,
) -> None:
    """End requests now; one that is not known yet is cancelled when it comes."""
    settings = load_settings(set_, redis_url=redis_url, port=port, model=model, queue=queue)
    names = [check_id(name) for name in ids]
    with Client(settings) as client:
        for name in names:
            state = client.cancel(name)
            print(f"{name}: {_OUTCOMES.get(state, f'cancelled, was {state}')}")
