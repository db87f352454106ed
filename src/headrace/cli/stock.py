"""``headrace stock``: count a queue again, and say what has leaked."""

from dataclasses import asdict
from typing import Annotated

import typer

from headrace.broker import Broker
from headrace.cli.options import Json, Model, Port, Queue, RedisUrl, Set, load_settings
from headrace.cli.printing import print_json
from headrace.stock import Stock, repair_totals, take_stock


def stock(
    redis_url: RedisUrl = None,
    port: Port = None,
    model: Model = None,
    queue: Queue = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Put wrong totals right, on a queue of which nothing is asked meanwhile.")
    ] = False,
    json_: Json = False,
    set_: Set = None,
) -> None:
    """Count a queue again from its requests, and look for what has leaked; the exit status is then 1."""
    settings = load_settings(set_, redis_url=redis_url, port=port, model=model, queue=queue)
    broker = Broker.connect(settings)
    found = repair_totals(broker) if repair else take_stock(broker)
    broker.close()
    if json_:
        print_json(asdict(found))
    else:
        print("\n".join(_lines(found)))
    if not found.is_sound:
        raise typer.Exit(1)


def _lines(found: Stock) -> list[str]:
    waiting = ", ".join(f"{lane} {number}" for lane, number in found.waiting.items())
    lines = [
        f"queue {found.queue}: waiting {waiting}; running {found.running}; dead {found.dead}; workers {found.workers}",
        "states: " + (", ".join(f"{state} {number}" for state, number in sorted(found.states.items())) or "no request"),
    ]
    lines += [f"{suffix}: {length} not admitted yet" for suffix, length in found.not_admitted.items() if length]
    for name, total in found.totals.items():
        if found.settled and total != found.recount[name]:
            lines.append(f"{name} is {total}, a recount gives {found.recount[name]}")
    if not found.settled:
        lines.append("the queue did not stand still while it was counted: its totals were not checked")
    return [*lines, *(f"leak: {leak}" for leak in found.leaks)]
