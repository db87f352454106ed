"""The broker that ``up`` brings: what it refuses in words, what it keeps, what it never touches."""

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
from tests.waiting import LIMIT_S, until

from headrace.errors import ConfigurationError
from headrace.testing.servers import Server, free_port
from headrace.workers.embedded_broker import EmbeddedBroker, default_data_dir


class Running:
    """An embedded broker without a supervisor."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.broker = broker
        self.process = subprocess.Popen(list(broker.spec().argv), stderr=subprocess.PIPE, text=True)
        until(lambda: broker.answers() or self.process.poll() is not None)

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.broker.url)

    def end(self, number: signal.Signals) -> str:
        """Stop it; return what it said on stderr."""
        self.process.send_signal(number)
        return self.process.communicate(timeout=LIMIT_S)[1]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(EmbeddedBroker(free_port(), tmp_path / "data"))
    yield running
    running.end(signal.SIGKILL)


def test_what_was_written_is_there_after_a_kill(running: Running) -> None:
    with running.client() as client:
        client.set("key", "value")
    running.end(signal.SIGKILL)
    again = Running(running.broker)
    with again.client() as client:
        assert client.get("key") == b"value"
    again.end(signal.SIGTERM)
    assert again.process.returncode == 0


def test_it_never_throws_requests_away_and_keeps_an_append_only_file(running: Running) -> None:
    with running.client() as client:
        found = client.config_get("appendonly", "appendfsync", "maxmemory-policy", "bind", "save")
    assert found == {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction",
                     "bind": "127.0.0.1", "save": ""}  # fmt: skip


def test_a_taken_port_is_refused_and_its_server_left_alone(tmp_path: Path) -> None:
    with Server("redis", port=free_port()) as server, server.client() as client:
        client.set("theirs", "1")
        broker = EmbeddedBroker(server.port or 0, tmp_path / "data")
        with pytest.raises(ConfigurationError, match=r"port \d+ is taken by another program: .* --port .* --redis-url"):
            broker.check()
        assert client.dbsize() == 1


def test_a_port_that_is_taken_later_ends_the_child_with_status_2(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        argv = EmbeddedBroker(other.getsockname()[1], tmp_path / "data").spec().argv
        code = (
            "import sys; from headrace.workers import embedded_broker as b; b._PATIENCE_S = 0.1; "
            f"sys.argv = {list(argv[3:])!r}; b.main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith("headrace: port ")


def test_two_brokers_never_share_a_folder(running: Running) -> None:
    other = EmbeddedBroker(free_port(), running.broker.data_dir)
    with pytest.raises(ConfigurationError, match=r"in use by another broker: .* --data-dir"):
        other.check()
    running.end(signal.SIGTERM)
    other.check()


def test_a_folder_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"cannot write to .*file/data .* --data-dir"):
        EmbeddedBroker(free_port(), tmp_path / "file" / "data").check()


def test_a_full_disk_is_refused_with_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    with pytest.raises(ConfigurationError, match=r"the disk is full: 5 MB are free at .* needs 64"):
        EmbeddedBroker(free_port(), tmp_path).check()


def test_the_default_folder_is_the_users_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_data_dir("m/0", 6380) == tmp_path / "headrace" / "m-0-6380"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data_dir("m", 6380) == tmp_path / ".local" / "state" / "headrace" / "m-6380"
