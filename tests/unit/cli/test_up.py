"""What ``headrace up`` decides and says, without starting anything."""

from pathlib import Path

import pytest

from headrace.broker import Broker
from headrace.cli.fleet import Fleet
from headrace.cli.up import _greet
from headrace.config import Settings
from headrace.errors import BrokerUnavailableError


def _settings(**given: object) -> Settings:
    return Settings.load(**given)


def test_without_a_url_a_broker_comes_along_and_everybody_is_sent_to_it(tmp_path: Path) -> None:
    fleet = Fleet.plan(_settings(port=0, data_dir=tmp_path / "data"))
    assert fleet.broker is not None
    assert fleet.broker.port > 0
    broker, processes = fleet.stages()
    assert [spec.name for spec in broker] == ["broker"]
    assert [spec.name for spec in processes] == ["scheduler", "worker 1"]
    assert {spec.environ["HEADRACE_REDIS_URL"] for spec in processes} == {fleet.broker.url}
    assert [spec.ready is not None for spec in processes] == [False, True]


def test_a_named_server_is_used_as_it_is(queue: Broker) -> None:
    fleet = Fleet.plan(_settings())
    [processes] = fleet.stages()
    assert fleet.broker is None
    assert {spec.environ["HEADRACE_REDIS_URL"] for spec in processes} == {queue.settings.redis_url}


def test_a_named_server_that_is_away_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailableError):
        Fleet.plan(_settings(redis_url=f"unix://{tmp_path}/none"))


def test_a_worker_gets_its_drain_time_before_it_is_killed(tmp_path: Path) -> None:
    _, processes = Fleet.plan(_settings(port=0, data_dir=tmp_path / "data", drain_ms=60_000, lease_ms=5_000)).stages()
    assert processes[-1].grace_s > 65


def test_no_password_is_on_a_childs_command_line(queue: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    socket = queue.settings.redis_url.removeprefix("unix://")
    fleet = Fleet(_settings(redis_url=f"unix://user:secret@{socket}"), None)
    [processes] = fleet.stages()
    assert not any("secret" in word for spec in processes for word in spec.argv)


def test_the_greeting_shows_three_ways_that_reach_this_very_fleet(capsys: pytest.CaptureFixture[str]) -> None:
    _greet(Fleet(_settings(redis_url="redis://:secret@host:7000/0", queue="q"), None))
    ready, redis_cli, submit, python = capsys.readouterr().out.splitlines()
    assert "secret" not in ready + redis_cli + submit + python
    assert "redis://:***@host:7000/0" in ready
    assert "XADD 'hr:{q}:requests' '*' json" in redis_cli
    assert "'hr:{q}:out:a1'" in redis_cli
    assert "--queue q" in submit
    assert 'queue="q"' in python


def test_the_greeting_of_a_socket_uses_redis_clis_option_for_sockets(capsys: pytest.CaptureFixture[str]) -> None:
    _greet(Fleet(_settings(redis_url="unix:///run/r.sock"), None))
    lines = capsys.readouterr().out.splitlines()
    assert "redis-cli -s /run/r.sock XADD" in lines[1]
    assert "headrace submit --redis-url unix:///run/r.sock --chat" in lines[2]
