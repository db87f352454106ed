import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.unit.model_store.tiny_gguf import GgufRecipe

from headrace.errors import ModelError
from headrace.workers.model_store.gguf_convert import convert_gguf
from headrace.workers.model_store.revision import revision_of


@pytest.fixture
def folder(tmp_path: Path, recipe: GgufRecipe, written: Callable[[GgufRecipe], Path]) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    convert_gguf(written(recipe), path)
    return path


def test_it_is_short_and_does_not_depend_on_where_the_folder_lies(folder: Path, tmp_path: Path) -> None:
    revision = revision_of(folder)
    assert len(bytes.fromhex(revision)) == 8
    assert revision_of(Path(shutil.copytree(folder, tmp_path / "elsewhere"))) == revision


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_it_changes_with_every_small_file(folder: Path, name: str) -> None:
    before = revision_of(folder)
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | {"changed": 1}))
    assert revision_of(folder) != before


def test_it_changes_with_any_one_tensor_though_shapes_and_sizes_stay(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    revisions = set()
    for name in weights:
        save_file({**weights, name: weights[name] + np.float32(1e-3)}, path)
        revisions.add(revision_of(folder))
    save_file(weights, path)
    revisions.add(revision_of(folder))
    assert len(revisions) == len(weights) + 1


def test_it_changes_with_a_single_value_of_a_converted_models_source(
    tmp_path: Path, recipe: GgufRecipe, written: Callable[[GgufRecipe], Path]
) -> None:
    revisions = []
    for change in (0.0, 1.0):
        recipe.weights["model.embed_tokens.weight"][0, 0] += change
        path = tmp_path / f"model{change}"
        path.mkdir()
        convert_gguf(written(recipe), path)
        revisions.append(revision_of(path))
    assert revisions[0] != revisions[1]


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_damaged_weights_file_is_named(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        revision_of(folder)
