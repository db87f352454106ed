"""``headrace models``: without a network and without weights."""

import json
from pathlib import Path

import pytest
from tests.unit.cli.conftest import Headrace

from headrace.workers.model_store import store


def test_list_names_what_could_be_pulled_and_how_large_it_is(headrace: Headrace) -> None:
    offers = "".join(
        f"{name}  not here: headrace models pull {name} ({size} MB)\n"
        for name, size in (("all-minilm-l6-v2", 84), ("smollm2-135m", 93))
    )
    assert headrace("models", "list") == (0, offers, "")
    assert headrace("models", "list", "--json") == (0, "", "")


def test_list_shows_what_is_here(headrace: Headrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = [store.ModelFolder("org/tiny", tmp_path / "tiny", "0123456789abcdef")]
    monkeypatch.setattr(store, "list_pulled", lambda cache_dir: here)
    assert headrace("models", "list")[1].splitlines()[0] == f"org/tiny  0123456789abcdef  {tmp_path}/tiny"
    expected = {"name": "org/tiny", "path": f"{tmp_path}/tiny", "revision": "0123456789abcdef"}
    assert json.loads(headrace("models", "list", "--json")[1]) == expected


def test_a_model_that_does_not_exist_is_one_line_and_status_2(headrace: Headrace) -> None:
    status, _, err = headrace("models", "pull", "no-such-model")
    assert status == 2
    assert err.startswith("headrace: no model 'no-such-model'")
    assert err.count("\n") == 1
