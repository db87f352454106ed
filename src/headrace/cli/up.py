"""``headrace up``: a whole fleet on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.fleet import Fleet
from headrace.cli.greeting import greeting
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
    load_fleet_settings,
)
from headrace.config import Settings
from headrace.errors import ModelError
from headrace.logs import configure
from headrace.workers.model_store.store import ModelFolder, default_cache_dir, pull, resolve
from headrace.workers.supervisor import Supervisor
from headrace.workers.text.encoder_facts import is_encoder


def up(
    model: Model = None,
    port: Port = None,
    redis_url: RedisUrl = None,
    workers: Annotated[int | None, typer.Option("--workers", help="How many workers.")] = None,
    rq_workers: Annotated[
        int | None, typer.Option("--rq-workers", help="How many rq workers, see `headrace rq-worker`.")
    ] = None,
    queue: Queue = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="The broker's folder. Default: in the user's state folder.")
    ] = None,
    lease_ms: LeaseMs = None,
    device: Device = None,
    max_rows: MaxRows = None,
    kv_tokens: KvTokens = None,
    num_threads: NumThreads = None,
    drain_ms: DrainMs = None,
    log_level: LogLevel = None,
    set_: Set = None,
) -> None:
    """Start a broker, a scheduler and workers, and keep them alive. Ctrl-C lets running requests end first.

    The model is pulled if it is not here. Without --redis-url, the broker is a Valkey server of its own on 127.0.0.1.
    """
    settings = load_fleet_settings(
        set_, model=model, port=port, redis_url=redis_url, workers=workers, queue=queue, data_dir=data_dir,
        lease_ms=lease_ms, device=device, max_rows=max_rows, kv_tokens=kv_tokens, num_threads=num_threads,
        drain_ms=drain_ms, log_level=log_level, rq_workers=rq_workers,
    )  # fmt: skip
    configure(settings.log_level)
    fleet = Fleet.plan(settings)
    encodes = is_encoder(bring_model(fleet.settings).path)

    def greet() -> None:
        print("\n".join(greeting(fleet, encodes=encodes)), flush=True)

    supervisor = Supervisor(fleet.stages(), settings.restart_ms / 1000, greet)
    raise typer.Exit(supervisor.run())


def bring_model(settings: Settings) -> ModelFolder:
    """Pull the model if it is not on this machine; its size is told before the download starts.

    Raises:
        ModelError: it cannot be had.
    """
    from rich.console import Console

    cache_dir = settings.cache_dir or default_cache_dir()
    try:
        return resolve(settings.model, cache_dir)
    except ModelError:
        return pull(settings.model, cache_dir, Console(stderr=True))
