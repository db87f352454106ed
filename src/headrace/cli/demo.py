"""``headrace demo``: a fleet for one question, and nothing left of it afterwards."""

import signal
from typing import Annotated

import typer

from headrace.cli.fleet import Fleet, headrace_child
from headrace.cli.options import LogLevel, Model, Set, load_fleet_settings
from headrace.cli.up import bring_model
from headrace.logs import configure
from headrace.scratch import scratch_folder
from headrace.workers.supervisor import Supervisor

_PROMPT = "In two sentences: why is the sky blue?"
_ASK_GRACE_S = 2.0


def demo(
    prompt: Annotated[str, typer.Argument(help="What to ask.")] = _PROMPT,
    model: Model = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens of the answer at most.")] = 160,
    log_level: LogLevel = None,
    set_: Set = None,
) -> None:
    """Start broker, scheduler and worker, ask the model, print the answer token by token, and clear all away.

    Then comes one line with the time to the first token and tokens/s.
    """
    # SIGTERM runs the same clearing away as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with scratch_folder("demo") as data_dir:
        settings = load_fleet_settings(
            set_, model=model, port=0, data_dir=data_dir, workers=1, drain_ms=0, log_level=log_level or "warning"
        )
        configure(settings.log_level)
        bring_model(settings)
        fleet = Fleet.with_own_broker(settings)
        ask = ["submit", "--chat", "--stats", "--temperature", "0", "--max-tokens", str(max_tokens), "--", prompt]
        stages = [*fleet.stages(), [headrace_child("question", ask, fleet.settings, _ASK_GRACE_S, restart=False)]]
        raise typer.Exit(Supervisor(stages, settings.restart_ms / 1000).run())
