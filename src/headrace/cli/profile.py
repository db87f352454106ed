"""``headrace profile``: where an encoder's time goes, and how far that is from what the device can do."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.bench_encoder import load
from headrace.cli.options import Device, Json, NumThreads, Set, load_fleet_settings
from headrace.cli.printing import print_json
from headrace.errors import ConfigurationError

if TYPE_CHECKING:
    from headrace.workers.encoder.profile import OperationTime

_PASSES = 5


def profile(
    model: Annotated[str, typer.Option("--model", help="A known name, a folder or a hub id.")] = "all-minilm-l6-v2",
    rows: Annotated[str, typer.Option("--rows", help="Tokens of each row, e.g. 128,128,40.")] = "128,128,128,128",
    json_: Json = False,
    device: Device = None,
    num_threads: NumThreads = None,
    set_: Set = None,
) -> None:
    """Time every operation of an encoder's forward pass on rows of random tokens, beside the device's own limits.

    What comes from the caches in a real pass comes from memory here: the shares of the limit are those of large
    batches.
    """
    settings = load_fleet_settings(set_, device=device, num_threads=num_threads, model=model)
    lengths = [int(length) for length in rows.split(",") if length.isdecimal()]
    if not lengths or len(lengths) != len(rows.split(",")) or min(lengths) < 1:
        raise ConfigurationError(f"--rows {rows}: give the tokens of each row, like 128,128,40")
    import torch

    from headrace.workers.encoder.profile import ProfiledEncoder
    from headrace.workers.encoder.tables import table_for

    place = torch.device(settings.device)
    table = ProfiledEncoder(table_for(place), place)
    encoder = load(settings, table)
    config = encoder.model.config
    if max(lengths) > config.max_tokens:
        raise ConfigurationError(f"--rows {rows}: the model reads rows of up to {config.max_tokens} tokens")
    ids = torch.randint(6, config.vocab_size, (sum(lengths),))
    positions = torch.cat([config.first_position + torch.arange(length) for length in lengths])
    with torch.inference_mode():
        limits = table.limits(encoder.model.dtype)
        for number in range(1 + _PASSES):
            if number == 1:
                # What has been compiled and loaded until here does not count.
                table.report(limits)
            batch = table.pack(ids, positions, None, lengths)
            table.pool(encoder.model.forward(batch), batch, "mean", normalise=True)
    found = table.report(limits)
    if json_:
        print_json([asdict(each) | {"calls": each.calls // _PASSES, "of_limit": each.of_limit} for each in found])
    else:
        rates = f"{limits.flops_per_us / 1e6:.2f} TFLOP/s, {limits.bytes_per_us / 1e3:.0f} GB/s"
        _print(f"{model}, {len(lengths)} rows, {sum(lengths)} tokens, {settings.device}: {rates}", found)


def _print(title: str, found: "list[OperationTime]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("operation", "calls", "us", "least us", "of the limit", "of the pass", title=title)
    for each in found:
        table.add_row(
            each.name,
            str(each.calls // _PASSES),
            f"{each.us:.1f}",
            f"{each.floor_us:.1f}",
            f"{each.of_limit:.0%}",
            f"{each.share:.0%}",
        )
    Console().print(table)
