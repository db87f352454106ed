"""``headrace health``: does what should run on this machine run? For the health checks of containers and supervisors.

It asks Redis for heartbeats and not the process list for names: a scheduler that hangs, and a worker without an engine,
have a process and send no heartbeat.
"""

import socket
from typing import Annotated, Literal, get_args

import typer

from headrace.broker import Broker
from headrace.cli.options import LeaseMs, Model, Port, Queue, RedisUrl, Set, load_settings
from headrace.config import Settings
from headrace.errors import ConfigurationError, UnhealthyError
from headrace.keys import ProcessKind

Kind = Literal[ProcessKind, "rq"]
_KINDS: tuple[Kind, ...] = get_args(Kind)


def health(
    kind: Annotated[
        str | None, typer.Argument(metavar="[worker|scheduler|rq]", help="What should run here. Default: any of them.")
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
        silences_ms = {name: ms for known in kinds for name, ms in _silences_ms(broker, known, settings).items()}
    finally:
        broker.close()
    if not silences_ms:
        raise UnhealthyError(
            f"no {' or '.join(kinds)} of {socket.gethostname()} has sent a heartbeat to queue {settings.queue_name} "
            "within a lease"
        )
    for name, ms in silences_ms.items():
        print(f"{name}: {max(0, ms):.0f} ms ago")


def _silences_ms(broker: Broker, kind: Kind, settings: Settings) -> dict[str, float]:
    """This host's processes of a kind that have sent a heartbeat within a lease, and how long ago."""
    if kind == "rq":
        from headrace.producer.bulk.presence import silences_ms

        return silences_ms(settings)
    now_ms = broker.now_ms()
    beats = broker.living.heartbeats(kind, settings.lease_ms)
    return {beat.name: now_ms - beat.seen_ms for beat in beats if beat.details.get("host") == socket.gethostname()}
