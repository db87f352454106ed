"""``headrace top``: a queue, its batches and its workers as they are at this moment, again and again."""

from typing import Annotated

import typer

from headrace.cli.options import Model, Port, Queue, RedisUrl, Set, load_settings


def top(
    redis_url: RedisUrl = None,
    port: Port = None,
    model: Model = None,
    queue: Queue = None,
    interval_s: Annotated[float, typer.Option("--interval-s", min=0.1, help="Pause between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    set_: Set = None,
) -> None:
    """Watch the queue by lane, the batches with their predicted and real costs, and the workers. Ctrl-C ends it."""
    settings = load_settings(set_, redis_url=redis_url, port=port, model=model, queue=queue)
    from headrace.cli.top_watch import print_once, watch_for_ever

    if once:
        print_once(settings)
    else:
        watch_for_ever(settings, interval_s)
