"""Pulling a model from the Hugging Face hub: only the files that serving needs, and their size known first.

The hub's client keeps partial downloads and continues them, so its cache layout is kept as it is. A snapshot may
therefore be incomplete; what marks it complete is a link, made last.
"""

import os
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from rich.console import Console
from rich.filesize import decimal

from headrace.errors import ModelError
from headrace.workers.model_store.staging import require_free_space

_WANTED = (
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
# Other exports live in subfolders; some repositories carry a second copy of the weights in their maker's own format.
_UNWANTED = ("*/*", "consolidated*.safetensors")


def snapshot_link(repo_id: str, cache_dir: Path) -> Path:
    """Return the link that exists exactly when ``repo_id`` was pulled completely."""
    return cache_dir / "hub" / "complete" / repo_id.replace("/", "--")


def pull_snapshot(repo_id: str, cache_dir: Path, console: Console) -> None:
    """Download ``repo_id`` into the cache and make its link; continues an interrupted download.

    Raises:
        ModelError: the hub cannot be reached, does not have the model or does not give it to this user, the model has
            no safetensors files, or the disk is too small.
    """
    try:
        info = HfApi().model_info(repo_id, files_metadata=True)
        sizes_bytes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        names = _wanted(sizes_bytes)
        if not any(name.endswith(".safetensors") for name in names):
            raise ModelError(f"{repo_id} on the Hugging Face hub has no safetensors files")
        total_bytes = sum(sizes_bytes[name] for name in names)
        console.print(
            f"{repo_id}\n  from the Hugging Face hub, revision {info.sha}: {decimal(total_bytes)} to download"
        )
        require_free_space(cache_dir, total_bytes)
        # The client draws a bar a file by itself.
        snapshot = snapshot_download(
            repo_id,
            revision=info.sha,
            cache_dir=cache_dir / "hub",
            allow_patterns=names,
            ignore_patterns=list(_UNWANTED),
        )
    except GatedRepoError as error:
        raise ModelError(
            f"{repo_id} is gated: accept its licence on huggingface.co, then set HF_TOKEN or run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"the Hugging Face hub has no public model {repo_id}; check the spelling") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot pull {repo_id} from the Hugging Face hub: {first_line}") from error
    _point(snapshot_link(repo_id, cache_dir), Path(snapshot))


def _wanted(names: Iterable[str]) -> list[str]:
    return [
        name
        for name in names
        if any(fnmatch(name, pattern) for pattern in _WANTED)
        and not any(fnmatch(name, pattern) for pattern in _UNWANTED)
    ]


def _point(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, link.parent))
    temporary.replace(link)
