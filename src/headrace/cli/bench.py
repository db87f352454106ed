"""``headrace bench``: repeat the project's figures on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli import bench_encoder
from headrace.errors import MeasurementError

app = typer.Typer(help="Repeat the project's figures on this machine.")


@app.callback()
def _root() -> None:
    pass


app.command("encoder")(bench_encoder.encoder)


@app.command("gpu")
def gpu(
    cases: Annotated[
        list[str] | None,
        typer.Option("--cases", metavar="NAME", help="decode, decode/L8B/1, 'poisson/*/50' ... Repeatable."),
    ] = None,
    shapes: Annotated[
        list[str] | None, typer.Option("--shapes", metavar="NAME", help="L8B or Q06. Repeatable. Default: both.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Measurements, of which the median counts.")] = 5,
    budget_s: Annotated[
        float, typer.Option("--budget-s", min=0.001, help="Of each case: no further round begins after it.")
    ] = 120.0,
    device: Annotated[int, typer.Option("--device", min=0, help="Index of the GPU.")] = 0,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", exists=True, file_okay=False, help="Where models are written: 17 GB for a while."),
    ] = None,
    step_tokens: Annotated[int, typer.Option("--step-tokens", min=0, help="Of engines; 0: a worker's default.")] = 0,
    list_: Annotated[bool, typer.Option("--list", help="Print the names of the cases, and measure nothing.")] = False,
    save: Annotated[bool, typer.Option("--save", help="Append the figures to docs/bench/results.jsonl.")] = False,
) -> None:
    """Measure the engine on a GPU: steps, throughput, prompts, long rows, starts, and the way through Redis.

    Models in full size (L8B: Llama 3 8B, Q06: Qwen3 0.6B) with random weights, bf16. The last line is all figures as
    JSON. Exits with 1 if a case failed; the others are measured all the same.
    """
    from headrace.bench.bench import Bench, Effort
    from headrace.bench.case import select
    from headrace.bench.catalogue import catalogue
    from headrace.bench.machine import Machine
    from headrace.bench.run import run
    from headrace.testing.full_shapes import SHAPES
    from headrace.testing.rows import Report

    chosen = select(catalogue(SHAPES), cases or (), shapes or ())
    if list_:
        for case in chosen:
            print(case.name)
        return
    effort = Effort(rounds, budget_s, step_tokens=step_tokens)
    report = Report("headrace bench gpu")
    with Bench(Machine.gpu(device), SHAPES, effort, folder) as bench:
        failures = run(bench, chosen, report, save=save)
    report.finish(save=save)
    if failures:
        raise MeasurementError(f"{len(failures)} of {len(chosen)} cases failed: " + "; ".join(failures))
