"""Pulling a model from the Hugging Face hub: only the files that serving needs, and their size known first.

The hub's client keeps partial downloads and continues them, so its cache layout is kept as it is. A snapshot may
therefore be incomplete; what marks it complete is a link, made last.
"""

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from rich.console import Console
from rich.filesize import decimal

from headrace.errors import ModelError
from headrace.workers.model_store.revision import MODULE_FOLDERS
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
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
# What stands on an encoder: how it is pooled, and dense layers behind that.
_WANTED_BELOW = (f"{MODULE_FOLDERS}/config.json", f"{MODULE_FOLDERS}/model.safetensors")
# Some repositories carry a second copy of the weights in their maker's own format. Other exports live in subfolders.
_UNWANTED = "consolidated*.safetensors"


def pull_snapshot(repo_id: str, cache_dir: Path, link: Path, console: Console) -> None:
    """Download ``repo_id`` into the cache, and let ``link`` point at it; continues an interrupted download.

    Raises:
        ModelError: the hub cannot be reached, does not have the model or does not give it to this user, the model has
            no safetensors files or no tokenizer.json, or the disk is too small.
    """
    hub = cache_dir / "hub"
    patterns = [*_WANTED, *_WANTED_BELOW]
    listing = [file for file in _ask(repo_id, cache_dir=hub, allow_patterns=patterns, dry_run=True) if _is_wanted(file)]
    names = [file.filename for file in listing]
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        raise ModelError(f"{repo_id} on the Hugging Face hub has no safetensors files")
    if "tokenizer.json" not in names:
        # Said before gigabytes come that nobody could use.
        raise ModelError(
            f"{repo_id} on the Hugging Face hub has no tokenizer.json; where there is an older format, transformers "
            "writes it: AutoTokenizer.from_pretrained(ID).save_pretrained(FOLDER), into a folder with the model"
        )
    missing_bytes = sum(file.file_size or 0 for file in listing if file.will_download)
    commit = listing[0].commit_hash
    console.print(f"{repo_id}\n  from the Hugging Face hub, commit {commit}: {decimal(missing_bytes)} to download")
    require_free_space(cache_dir, missing_bytes)
    # The client draws its own bars.
    snapshot = Path(_ask(repo_id, revision=commit, cache_dir=hub, allow_patterns=names))
    # When the network fails half-way, the client may return what it has.
    absent = [file.filename for file in listing if not _has(snapshot / file.filename, file.file_size)]
    if absent:
        raise ModelError(f"{repo_id} arrived incomplete, without {', '.join(absent)}; run the command again")
    _point(link, snapshot)


def _is_wanted(file: Any) -> bool:
    """Tell whether a listed file is needed; the hub's patterns let a star stand for slashes, too."""
    name = str(file.filename)
    patterns = _WANTED_BELOW if "/" in name else _WANTED
    is_wanted = name.count("/") <= 1 and any(fnmatchcase(name, pattern) for pattern in patterns)
    return is_wanted and not fnmatchcase(name, _UNWANTED)


def _ask(repo_id: str, **arguments: Any) -> Any:
    try:
        return snapshot_download(repo_id, **arguments)
    except Exception as error:  # those of its HTTP client pass through, and which client that is changes
        raise _failure(repo_id, error) from error


def _failure(repo_id: str, error: BaseException) -> ModelError:
    cause: BaseException | None = error
    while cause is not None:  # what the hub said may be the cause of what the client says
        if isinstance(cause, GatedRepoError):
            return ModelError(
                f"{repo_id} is gated: accept its licence on huggingface.co, then set HF_TOKEN or run `hf auth login`"
            )
        if isinstance(cause, RepositoryNotFoundError):
            return ModelError(f"the Hugging Face hub has no public model {repo_id}; check the spelling")
        cause = cause.__cause__
    reason = _inaccessible(error.__cause__) if isinstance(error, DryRunError) else _first_line(error)
    return ModelError(f"cannot pull {repo_id} from the Hugging Face hub: {reason}")


def _inaccessible(cause: BaseException | None) -> str:
    """Why the hub does not list a repository, of which its client only says that it cannot try a download."""
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        advice = "check HF_TOKEN, and the spelling" if status in (401, 403) else "try again later"
        return f"it answers with status {status}; {advice}"
    why = f" ({_first_line(cause)})" if cause is not None else ""
    return f"it cannot be reached{why}; check the internet connection"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _has(path: Path, size_bytes: int | None) -> bool:
    return path.is_file() and size_bytes in (None, path.stat().st_size)


def _point(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, link.parent))
    temporary.replace(link)
