"""Settings in the environment: what is misspelt is refused, and what is wanted is said."""

import re
from pathlib import Path

import pytest

from headrace.config import Settings
from headrace.environment import NOT_SETTINGS
from headrace.errors import ConfigurationError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        # Previously nobody noticed.
        ("HEADRACE_WINDOWS", "3", "HEADRACE_WINDOWS in the environment: .* did you mean WINDOW?"),
        ("headrace_modle", "x", "headrace_modle in the environment: .* did you mean MODEL?"),
        ("HEADRACE_ZZZ", "3", r"no such setting; of \d+ the nearest are "),
        # Previously an error of pydantic's, which did not say what is wanted.
        ("HEADRACE_TENANTS", "foo", r"""HEADRACE_TENANTS='foo': must be JSON, as {"NAME": 1}"""),
        ("HEADRACE_RQ_JOBS", "generate", r"""HEADRACE_RQ_JOBS='generate': must be JSON, as \["NAME", "NAME"\]"""),
        # Previously ". is not a model folder".
        ("HEADRACE_MODEL", "", "model: String should have at least 1 character"),
    ],
)
def test_what_is_wrong_in_the_environment_is_said(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=message):
        Settings.load()


def test_names_that_others_read_are_left_to_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("window = 7")
    for name in NOT_SETTINGS:
        monkeypatch.setenv(name, str(tmp_path / "settings.toml"))
    monkeypatch.setenv("HEADRACE_TENANTS", '{"acme": 2}')
    monkeypatch.setenv("OTHERS", "3")
    settings = Settings.load()
    assert (settings.window, settings.tenants) == (7, {"acme": 2})


@pytest.mark.parametrize("name", ["docker-compose.yml", ".env.example", "README.md", "scripts/setup"])
def test_every_name_that_the_repository_tells_people_to_set_may_be_set(name: str) -> None:
    told = set(re.findall(r"HEADRACE_[A-Z_]*[A-Z]", (ROOT / name).read_text()))
    known = {f"HEADRACE_{field.upper()}" for field in Settings.model_fields} | set(NOT_SETTINGS)
    assert told
    assert told <= known


def test_what_a_process_hands_to_its_children_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.load(tenants={"acme": 2}, rq_jobs=["generate"], window=9)
    for name, value in settings.to_environ().items():
        monkeypatch.setenv(name, value)
    assert Settings.load() == settings
