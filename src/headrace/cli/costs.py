"""``headrace costs``: what batches cost on every class of workers, and have it measured again."""

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from headrace.broker import Broker
from headrace.cli.options import Json, Model, Port, Queue, RedisUrl, Set, load_settings
from headrace.cli.printing import print_json
from headrace.cli.units import cost, duration
from headrace.errors import DecodeError
from headrace.workers.costs.table import CostTable

app = typer.Typer(help="Show what batches cost on every class of workers (device, model revision, precision).")


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class of workers.

    Attributes:
        name: of the class; "" of workers that do not say.
        silent_ms: since the last heartbeat of one of its workers.
        table: what batches cost; None where none is published, or none that can be read.
        problem: why it cannot be read; else "".
    """

    name: str
    silent_ms: int
    table: CostTable | None
    problem: str = ""

    @classmethod
    def read(cls, broker: Broker) -> list["ClassRow"]:
        """Every class, those with the latest heartbeat first; raises BrokerUnavailableError."""
        tables, now_ms = broker.costs.tables(), broker.now_ms()
        seen = sorted(broker.costs.classes().items(), key=lambda item: -item[1])
        return [cls._of(name, max(0, now_ms - seen_ms), tables.get(name)) for name, seen_ms in seen]

    @classmethod
    def _of(cls, name: str, silent_ms: int, data: bytes | None) -> "ClassRow":
        try:
            return cls(name, silent_ms, CostTable.decode(data) if data is not None else None)
        except DecodeError as error:
            return cls(name, silent_ms, None, str(error))


@app.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    redis_url: RedisUrl = None,
    port: Port = None,
    model: Model = None,
    queue: Queue = None,
    json_: Json = False,
    set_: Set = None,
) -> None:
    """Show what batches cost on every class of workers: padded to one length, and back to back."""
    if context.invoked_subcommand is not None:
        return
    broker = Broker.connect(load_settings(set_, redis_url=redis_url, port=port, model=model, queue=queue))
    found = ClassRow.read(broker)
    broker.close()
    if json_:
        print_json([asdict(row) for row in found])
    elif not found:
        print("no class of workers is known: none has sent a heartbeat")
    else:
        _print(found)


@app.command("measure")
def measure(
    worker_class: Annotated[
        str, typer.Option("--class", metavar="CLASS", help="Only workers of this class, as `headrace costs` names it.")
    ] = "",
    redis_url: RedisUrl = None,
    port: Port = None,
    model: Model = None,
    queue: Queue = None,
    set_: Set = None,
) -> None:
    """Ask workers to measure again, as soon as they have nothing to compute."""
    broker = Broker.connect(load_settings(set_, redis_url=redis_url, port=port, model=model, queue=queue))
    asked = broker.costs.request_measurement(worker_class)
    broker.close()
    for name in asked:
        print(f"asked {name}")


def _print(found: list[ClassRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for row in found:
        print(f"\n{row.name or '(no class)'}  last heartbeat {duration(row.silent_ms)} ago", flush=True)
        if row.table is None:
            print(f"no costs: {row.problem or 'none are published yet'}", flush=True)
            continue
        table = row.table
        padded = Table(
            "tokens",
            *(f"{rows} row{'s' * (rows > 1)}" for rows in table.batch_sizes),
            title="each row of so many tokens",
        )
        for length, line in zip(table.lengths, table.cost_ms, strict=True):
            padded.add_row(str(length), *(cost(cost_ms) for cost_ms in line))
        console.print(padded)
        if table.packs:
            packed = Table("tokens", "together", title="rows of any length, back to back")
            for tokens, cost_ms in zip(table.packed_tokens, table.packed_ms, strict=True):
                packed.add_row(str(tokens), cost(cost_ms))
            console.print(packed)
