"""The program ``headrace``: its commands, and what becomes of an error."""

import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from headrace import __version__
from headrace.cli import (
    bench,
    cancel,
    costs,
    dead,
    demo,
    doctor,
    health,
    models,
    processes,
    profile,
    rq_worker,
    status,
    stock,
    submit,
    tail,
    top,
    up,
)
from headrace.errors import ConfigurationError, HeadraceError, ModelError


class CommandGroup(TyperGroup):
    """Turns the errors that Headrace raises on purpose into one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; 2 stands for what the user can set right, 1 for all else."""
        try:
            return super().invoke(ctx)
        except (HeadraceError, TimeoutError) as error:
            if ctx.params.get("debug") or os.environ.get("HEADRACE_LOG_LEVEL") == "debug":
                traceback.print_exc()
            print(f"headrace: {error}", file=sys.stderr)
            raise typer.Exit(2 if isinstance(error, ConfigurationError | ModelError) else 1) from error


app = typer.Typer(
    cls=CommandGroup,
    help="A fleet of inference workers behind Redis: kill anything, and the text goes on.",
    epilog="Every setting can also be given as HEADRACE_<NAME> in the environment, or in a headrace.toml.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool | None) -> None:
    if value:
        print(f"headrace {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="HEADRACE_DEBUG", help="Show where an error comes from.")
    ] = False,
    version: Annotated[
        bool | None, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = None,
) -> None:
    pass


app.command("up")(up.up)
app.command("scheduler")(processes.scheduler)
app.command("worker")(processes.worker)
app.command("rq-worker")(rq_worker.rq_worker)
app.command("submit")(submit.submit)
app.command("tail")(tail.tail)
app.command("status")(status.status)
app.command("top")(top.top)
app.command("health")(health.health)
app.command("doctor")(doctor.doctor)
app.command("stock")(stock.stock)
app.command("cancel")(cancel.cancel)
app.add_typer(models.app, name="models")
app.add_typer(dead.app, name="dead")
app.add_typer(costs.app, name="costs")
app.add_typer(bench.app, name="bench")
app.command("profile")(profile.profile)
app.command("demo")(demo.demo)


def main() -> None:
    """Run the program; the console script's entry."""
    app()
