"""``headrace scheduler`` and ``headrace worker``: one process of a fleet each, in the foreground."""

import typer

from headrace.cli.options import (
    Device,
    DrainMs,
    KvTokens,
    LeaseMs,
    LogLevel,
    MaxRows,
    Model,
    NumThreads,
    Port,
    Queue,
    RedisUrl,
    Set,
    load_settings,
)
from headrace.logs import configure


def scheduler(
    redis_url: RedisUrl = None,
    port: Port = None,
    model: Model = None,
    queue: Queue = None,
    lease_ms: LeaseMs = None,
    log_level: LogLevel = None,
    set_: Set = None,
) -> None:
    """Run one scheduler. Several may run: one leads, the others stand by."""
    settings = load_settings(
        set_, redis_url=redis_url, port=port, model=model, queue=queue, lease_ms=lease_ms, log_level=log_level
    )
    configure(settings.log_level)
    from headrace.workers.scheduler.process import run

    run(settings)


def worker(
    redis_url: RedisUrl = None,
    port: Port = None,
    model: Model = None,
    queue: Queue = None,
    lease_ms: LeaseMs = None,
    device: Device = None,
    max_rows: MaxRows = None,
    kv_tokens: KvTokens = None,
    num_threads: NumThreads = None,
    drain_ms: DrainMs = None,
    log_level: LogLevel = None,
    set_: Set = None,
) -> None:
    """Run one worker, an engine and its courier. SIGTERM or Ctrl-C lets running requests end first."""
    settings = load_settings(
        set_, redis_url=redis_url, port=port, model=model, queue=queue, lease_ms=lease_ms, device=device,
        max_rows=max_rows, kv_tokens=kv_tokens, num_threads=num_threads, drain_ms=drain_ms, log_level=log_level,
    )  # fmt: skip
    configure(settings.log_level)
    from headrace.workers.worker import run

    raise typer.Exit(run(settings))
