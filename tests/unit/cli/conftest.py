"""The command line in this process, against a private server and a fleet made of the moves."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from tests.conftest import fast_settings
from tests.unit.producer.stub_fleet import StubFleet
from typer.testing import CliRunner

from headrace.broker import Broker
from headrace.cli.app import app
from headrace.producer import reading
from headrace.testing.servers import Server

#: Exit status, stdout, stderr.
Outcome = tuple[int, str, str]
Headrace = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a headrace.toml nor a cache of the developer's is seen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(reading, "MAX_BLOCK_MS", 100)


@pytest.fixture
def queue(valkey_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    """An empty queue; commands find it through the environment."""
    settings = fast_settings(redis_url=valkey_server.url)
    monkeypatch.setenv("HEADRACE_REDIS_URL", valkey_server.url)
    monkeypatch.setenv("HEADRACE_QUEUE", settings.queue)
    monkeypatch.setenv("HEADRACE_LEASE_MS", str(settings.lease_ms))
    broker = Broker.connect(settings)
    yield broker
    broker.close()


@pytest.fixture
def stub_fleet(queue: Broker) -> Iterator[StubFleet]:
    """A scheduler and a worker for the queue."""
    with StubFleet(queue) as fleet:
        yield fleet


@pytest.fixture
def headrace() -> Headrace:
    """Runs a command line."""

    def run(*arguments: str, stdin: str | None = None) -> Outcome:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


def bodies(broker: Broker) -> list[dict[str, Any]]:
    """The requests that wait in the lane ``normal``, as their producers wrote them."""
    entries = broker.client.xrange(broker.keys.prefix + "requests")
    return [msgpack.unpackb(f[b"mp"]) if b"mp" in f else json.loads(f[b"json"]) for _, f in entries]
