"""What ``headrace up`` decides and says, without starting anything."""

from pathlib import Path

import pytest

from headrace.broker import Broker
from headrace.cli.fleet import Fleet
from headrace.cli.greeting import greeting
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


def test_rq_workers_come_along_only_where_they_are_asked_for(tmp_path: Path) -> None:
    settings = _settings(port=0, data_dir=tmp_path / "data", rq_workers=2)
    _, processes = Fleet.plan(settings).stages()
    assert [spec.name for spec in processes] == ["scheduler", "rq worker 1", "rq worker 2", "worker 1"]
    assert [spec.argv[-1] for spec in processes if "rq" in spec.name] == ["rq-worker", "rq-worker"]


def test_no_password_is_on_a_childs_command_line(queue: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    socket = queue.settings.redis_url.removeprefix("unix://")
    fleet = Fleet(_settings(redis_url=f"unix://user:secret@{socket}"), None)
    [processes] = fleet.stages()
    assert not any("secret" in word for spec in processes for word in spec.argv)


def _greeting(**given: object) -> list[str]:
    return greeting(Fleet(_settings(**given), None))


def test_the_greeting_shows_three_ways_that_reach_this_very_fleet() -> None:
    ready, redis_cli, submit, python = _greeting(redis_url="redis://host:7000/0", queue="q")
    assert "redis://host:7000/0" in ready
    assert "redis-cli -u redis://host:7000/0 XADD 'hr:{q}:requests' '*' json" in redis_cli
    assert "'hr:{q}:out:a1'" in redis_cli
    assert "--redis-url redis://host:7000/0 --queue q" in submit
    assert 'Client(url="redis://host:7000/0", queue="q")' in python


@pytest.mark.parametrize(
    ("url", "shown", "redis_cli"),
    [
        ("redis://:secret@host:7000/0", "redis://:***@host:7000/0", "redis-cli -u redis://host:7000/0 XADD"),
        ("redis://host:7000/0?password=secret", "redis://host:7000/0,", "redis-cli -u redis://host:7000/0 XADD"),
        ("redis://h/0?p%61ssword=secret&db=2", "redis://h/0?db=2,", "redis-cli -u redis://h/0 -n 2 XADD"),
        ("rediss://me:secret@h/0", "rediss://me:***@h/0,", "redis-cli -u rediss://h/0 --user me XADD"),
        ("redis://h/0?username=me&password=secret", "redis://h/0,", "redis-cli -u redis://h/0 --user me XADD"),
        ("unix://me:secret@/r.sock?db=1", "unix:///r.sock?db=1,", "redis-cli -s /r.sock -n 1 --user me XADD"),
        ("unix:///r.sock?password=secret", "unix:///r.sock,", "redis-cli -s /r.sock XADD"),
    ],
)
def test_the_greeting_never_shows_a_password_and_says_where_to_put_it(url: str, shown: str, redis_cli: str) -> None:
    lines = _greeting(redis_url=url, queue="q")
    assert "secret" not in "".join(lines)
    assert shown in lines[0]
    assert "HEADRACE_REDIS_URL" in lines[1]
    assert "REDISCLI_AUTH" in lines[1]
    assert redis_cli in lines[2]
    # Both take the URL from the environment.
    assert "headrace submit --queue q --chat" in lines[3]
    assert 'Client(queue="q")' in lines[4]


def test_the_greeting_hands_a_password_file_on(tmp_path: Path) -> None:
    path = tmp_path / "a password"
    path.write_text("secret")
    lines = _greeting(redis_url="redis://host/0", redis_password_file=path)
    assert lines[1] == f"  export HEADRACE_REDIS_PASSWORD_FILE='{path}' REDISCLI_AUTH=\"$(cat '{path}')\""
    assert "redis-cli -u redis://host/0 XADD" in lines[2]
    assert "--redis-url redis://host/0" in lines[3]
    assert "secret" not in "".join(lines)


def test_the_greeting_of_a_socket_uses_redis_clis_option_for_sockets() -> None:
    lines = _greeting(redis_url="unix:///run/r.sock")
    assert "redis-cli -s /run/r.sock XADD" in lines[1]
    assert "headrace submit --redis-url unix:///run/r.sock --chat" in lines[2]


def test_a_fleet_for_an_encoder_greets_with_what_an_encoder_can_do() -> None:
    settings = Settings(redis_url="redis://127.0.0.1:6399/0", model="all-minilm-l6-v2")
    lines = "\n".join(greeting(Fleet(settings, None), encodes=True))
    assert '"task":"embed"' in lines
    assert '.embed("The sea is calm.").vector' in lines
    assert "headrace submit" not in lines
    assert "prompt" not in lines
