"""How options become settings."""

from pathlib import Path

import pytest
from tests.unit.cli.conftest import Headrace

from headrace.cli.options import is_url_given, load_fleet_settings, load_settings
from headrace.errors import ConfigurationError


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@host:1/0",
        "rediss://u:secret@host/0",
        "redis://h/0?password=secret",
        "rediss://h/0?ssl_password=secret",
    ],
)
def test_a_password_on_the_command_line_is_refused_and_not_repeated(headrace: Headrace, url: str) -> None:
    for arguments in (("status", "--redis-url", url), ("up", "--set", f"redis_url={url}")):
        status, _, err = headrace(*arguments)
        assert status == 2
        assert "HEADRACE_REDIS_PASSWORD_FILE" in err
        assert "secret" not in err


def test_a_password_in_the_environment_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_REDIS_URL", "redis://:secret@host:1/0")
    assert load_settings(None).redis_url == "redis://:secret@host:1/0"


def test_without_a_url_the_server_is_the_one_that_up_starts() -> None:
    assert load_settings(None).redis_url == "redis://127.0.0.1:6380/0"
    assert load_settings(None, port=7000).redis_url == "redis://127.0.0.1:7000/0"
    assert load_settings(["port=7000"], redis_url="redis://host/0").redis_url == "redis://host/0"


def test_up_brings_a_server_unless_one_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not is_url_given(load_fleet_settings(None, port=7000))
    assert is_url_given(load_fleet_settings(None, redis_url="redis://host/0"))
    monkeypatch.setenv("HEADRACE_REDIS_URL", "redis://host/0")
    assert is_url_given(load_fleet_settings(None))
    monkeypatch.delenv("HEADRACE_REDIS_URL")
    (tmp_path / "headrace.toml").write_text('redis_url = "redis://host/0"')
    assert is_url_given(load_fleet_settings(None))


def test_an_option_goes_before_the_environment_and_that_before_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "headrace.toml").write_text("max_rows = 3\nlease_ms = 3000\nwindow = 3")
    monkeypatch.setenv("HEADRACE_MAX_ROWS", "2")
    monkeypatch.setenv("HEADRACE_LEASE_MS", "2000")
    settings = load_settings(["max-rows=1"])
    assert (settings.max_rows, settings.lease_ms, settings.window) == (1, 2000, 3)


def test_a_list_and_weights_can_be_given_by_set_and_no_weight_is_infinite() -> None:
    # Previously a list was taken for a text, which no such setting takes.
    assert load_settings(['rq_jobs=["take_stock"]']).rq_jobs == {"take_stock"}
    assert load_settings(['lane_weights={"bulk": 0.1}']).lane_weights == {"bulk": 0.1}
    for name, key in (("lane_weights", "bulk"), ("tenants", "t1")):
        with pytest.raises(ConfigurationError, match=f"{name}.{key}.*finite"):
            load_settings([f'{name}={{"{key}": Infinity}}'])


def test_any_setting_can_be_given_by_set() -> None:
    settings = load_settings(["flush_ms=7", 'tenants={"acme": 2.5}', "model=2024"])
    assert (settings.flush_ms, settings.tenants, settings.model) == (7, {"acme": 2.5}, "2024")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [("lease_mss=1", "did you mean lease_ms"), ("zzz=1", "the nearest are"), ("lease_ms", "must be NAME=VALUE")],
)
def test_a_wrong_assignment_says_what_would_be_right(assignment: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_settings([assignment])


def test_a_setting_is_given_once() -> None:
    with pytest.raises(ConfigurationError, match="lease_ms: given twice"):
        load_settings(["lease_ms=1000"], lease_ms=2000)
