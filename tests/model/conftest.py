"""The real encoder that tests of sentences share."""

import pytest
from rich.console import Console

from headrace.workers.model_store.store import ModelFolder, default_cache_dir, pull


@pytest.fixture(scope="session")
def minilm() -> ModelFolder:
    """all-MiniLM-L6-v2, pulled into the user's cache once; without it the tests fail, they are not skipped."""
    return pull("all-minilm-l6-v2", default_cache_dir(), Console(stderr=True))
