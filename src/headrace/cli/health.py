"""``headrace health``: does what should run on this machine run? For the health checks of containers and supervisors.

It asks Redis for heartbeats and not the process list for names: a scheduler that hangs, and a worker without an engine,
have a process and send no heartbeat.
"""

import socket
from typing import Annotated, get_args

import typer

from headrace.broker import Broker, Heartbeat
from headrace.cli.options import LeaseMs, Model, Port, Queue, RedisUrl, Set, load_settings
from headrace.errors import ConfigurationError, UnhealthyError
from headrace.keys import ProcessKind

_KINDS: tuple[ProcessKind, ...] = get_args(ProcessKind)


def health(
    kind: Annotated[
        str | None, typer.Argument(metavar="[worker|scheduler]", help="What should run here. Default: either.")
    ] = None,
    redis_url: RedisUrl = None,
    port: Port = None,
    model: Model = None,
    queue: Queue = None,
    lease_ms: LeaseMs = None,
    set_: Set = None,
) -> None:
    """Exit with 0 if a process of this host has sent a heartbeat within a lease, with 1 and the reason if none has."""
    settings = load_settings(set_, redis_url=redis_url, port=port, model=model, queue=queue, lease_ms=lease_ms)
    kinds = _KINDS if kind is None else tuple(known for known in _KINDS if known == kind)
    if not kinds:
        raise ConfigurationError(f"health {kind}: must be one of {', '.join(_KINDS)}")
    broker = Broker.connect(settings)
    try:
        beating = [beat for known in kinds for beat in _of_this_host(broker, known, settings.lease_ms)]
        now_ms = broker.now_ms()
    finally:
        broker.close()
    if not beating:
        raise UnhealthyError(
            f"no {' or '.join(kinds)} of {socket.gethostname()} has sent a heartbeat to queue {settings.queue_name} "
            f"within {settings.lease_ms} ms"
        )
    for beat in beating:
        print(f"{beat.name}: {max(0, now_ms - beat.seen_ms)} ms ago")


def _of_this_host(broker: Broker, kind: ProcessKind, max_age_ms: int) -> list[Heartbeat]:
    host = socket.gethostname()
    return [beat for beat in broker.heartbeats(kind, max_age_ms) if beat.details.get("host") == host]
