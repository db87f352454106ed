"""``headrace rq-worker``: carries out jobs that others enqueue with RQ."""

from typing import Annotated

import typer

from headrace.cli.fleet import rq_workers
from headrace.cli.options import LogLevel, Model, Port, Queue, RedisUrl, Set, load_settings
from headrace.errors import ConfigurationError
from headrace.logs import configure
from headrace.workers.supervisor import Supervisor


def rq_worker(
    redis_url: RedisUrl = None,
    port: Port = None,
    model: Model = None,
    queue: Queue = None,
    rq_queue: Annotated[
        str | None, typer.Option("--rq-queue", help="The RQ queue to serve. Default: headrace.")
    ] = None,
    processes: Annotated[int, typer.Option("--processes", help="Jobs that are carried out at a time.")] = 1,
    burst: Annotated[bool, typer.Option("--burst", help="End when the RQ queue is empty.")] = False,
    log_level: LogLevel = None,
    set_: Set = None,
) -> None:
    """Carry out jobs from RQ: headrace.producer.jobs.generate and its likes, and nothing else.

    SIGTERM or Ctrl-C puts a running job back in front of its queue; its requests go on in the fleet meanwhile.
    """
    settings = load_settings(
        set_, redis_url=redis_url, port=port, model=model, queue=queue, rq_queue=rq_queue, log_level=log_level
    )
    if processes < 1:
        raise ConfigurationError(f"--processes {processes}: must be at least 1")
    if burst and processes > 1:
        raise ConfigurationError("--burst: one process empties a queue; leave --processes out")
    configure(settings.log_level)
    if processes > 1:
        children = rq_workers(settings, processes)
        raise typer.Exit(Supervisor([children], settings.restart_ms / 1000).run())
    from headrace.producer.bulk.process import run

    raise typer.Exit(run(settings, burst=burst))
