"""``headrace bench encoder``: what ways to batch do on this machine for an encoder, without any server."""

import csv
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import Device, Json, NumThreads, Set, load_fleet_settings
from headrace.cli.printing import print_json
from headrace.config import Settings
from headrace.errors import ConfigurationError

if TYPE_CHECKING:
    from headrace.kernels.encoder_table import EncoderOperations
    from headrace.workers.encoder.benchmark import WayTime
    from headrace.workers.encoder.loading import Encoder


def encoder(
    model: Annotated[str, typer.Option("--model", help="A known name, a folder or a hub id.")] = "all-minilm-l6-v2",
    lengths: Annotated[str, typer.Option("--lengths", help="Tokens of a row, from-to.")] = "5-500",
    num_rows: Annotated[int, typer.Option("--rows", help="Rows that wait.")] = 150,
    max_rows: Annotated[int, typer.Option("--max-rows", help="Rows of a batch that is padded.")] = 20,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Tokens of a batch.")] = 16_384,
    ways: Annotated[str, typer.Option("--ways", help="Of none, naive, sorted, dp, packed.")] = "",
    seed: Annotated[int, typer.Option("--seed", help="Of the lengths.")] = 0,
    csv_: Annotated[bool, typer.Option("--csv", help="For spreadsheets: CSV on stdout.")] = False,
    json_: Json = False,
    device: Device = None,
    num_threads: NumThreads = None,
    set_: Set = None,
) -> None:
    """Compute one window of random rows by each way to batch: alone, padded in three orders, packed.

    On a CPU that takes minutes, most of them for the costs by which dp cuts; stderr says how far it is.
    """
    from headrace.workers.encoder.benchmark import WAYS, Benchmark, WayTime, Window

    settings = load_fleet_settings(set_, device=device, num_threads=num_threads, model=model)
    chosen = tuple(name for name in ways.split(",") if name) or WAYS
    if unknown := [name for name in chosen if name not in WAYS]:
        raise ConfigurationError(f"--ways: {', '.join(unknown)}: there are {', '.join(WAYS)}")
    least, most = _range(lengths)
    loaded = load(settings)
    max_length = loaded.model.config.max_tokens
    if least > max_length:
        raise ConfigurationError(f"--lengths {lengths}: the model reads rows of up to {max_length} tokens")
    longest = min(most, max_length)
    window = Window.drawn(num_rows, least, longest, seed, max_rows=max_rows, max_tokens=max_tokens)
    benchmark = Benchmark(loaded)
    table = None
    if "dp" in chosen:
        _say("measuring what batches cost, for dp")
        table = benchmark.costs(window)
    times = []
    for way in WAYS:
        if way in chosen:
            times.append(benchmark.time(window, way, table))
            _say(f"{way}: {times[-1].ms:.1f} ms")
    if json_:
        print_json([asdict(each) for each in times])
    elif csv_:
        writer = csv.DictWriter(sys.stdout, [field.name for field in fields(WayTime)])
        writer.writeheader()
        writer.writerows(asdict(each) for each in times)
    else:
        _print(f"{Path(model).name}, {num_rows} rows of {least} to {longest} tokens, {settings.device}", times)


def _say(progress: str) -> None:
    print(f"bench encoder: {progress}", file=sys.stderr, flush=True)


def load(settings: Settings, table: "EncoderOperations | None" = None) -> "Encoder":
    """Load the settings' model on the settings' device.

    Args:
        settings: of the command.
        table: to compute with; default: the device's.

    Raises:
        ModelError: it is not here, or is no encoder.
        ConfigurationError: there is no such device, or it does not compute in this precision.
    """
    import torch

    from headrace.workers.encoder.assembly import load_for
    from headrace.workers.encoder.loading import load_encoder
    from headrace.workers.model_store.store import default_cache_dir, resolve

    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    folder = resolve(settings.model, settings.cache_dir or default_cache_dir())
    if table is None:
        return load_for(folder.path, torch.device(settings.device), settings.engine_dtype).encoder
    if settings.engine_dtype == "int8":
        raise ConfigurationError("operations of int8 are not told apart; set dtype to another precision")
    return load_encoder(folder.path, table, getattr(torch, settings.engine_dtype)).encoder


def _range(given: str) -> tuple[int, int]:
    least, _, most = given.partition("-")
    if not least.isdecimal() or not most.isdecimal():
        raise ConfigurationError(f"--lengths {given}: give two numbers, like 5-500")
    return int(least), int(most)


def _print(title: str, times: "list[WayTime]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("way", "batches", "padding", "ms", "rows/s", "tokens/s", title=title)
    for each in times:
        table.add_row(
            each.way,
            str(each.num_batches),
            f"{each.padded_share:.0%}",
            f"{each.ms:.1f}",
            f"{each.rows_per_s:,.0f}",
            f"{each.tokens_per_s:,.0f}",
        )
    Console().print(table)
