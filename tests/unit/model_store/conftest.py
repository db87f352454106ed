"""A real model, and GGUF files made to measure."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tests.unit.model_store.tiny_gguf import GgufRecipe, write_gguf

from headrace.workers.model_store.store import ModelFolder, default_cache_dir, pull


@pytest.fixture(scope="session")
def smollm2() -> ModelFolder:
    """SmolLM2-135M-Instruct, pulled into the user's cache once; without it the tests fail, they are not skipped."""
    return pull("smollm2-135m", default_cache_dir(), Console(stderr=True))


@pytest.fixture
def recipe() -> GgufRecipe:
    return GgufRecipe()


@pytest.fixture
def written(tmp_path: Path) -> Callable[[GgufRecipe], Path]:
    """Write a recipe's file, always at the same place."""

    def write(recipe: GgufRecipe) -> Path:
        path = tmp_path / "tiny.gguf"
        write_gguf(path, recipe)
        return path

    return write
