"""Servers and brokers that any test may ask for. A missing server fails a test, it never skips one."""

from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from headrace.broker import Broker
from headrace.config import Settings
from headrace.testing.servers import Kind, Server

# A busy machine is slow, and nothing is wrong with it.
hypothesis_settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("untimed")

#: A lease short enough to run out in a test, and long enough for two busy cores.
LEASE_MS = 1_000


def fast_settings(**given: Any) -> Settings:
    """Settings of a small queue that loses its patience quickly."""
    return Settings(**{"queue": "test", "model": "test", "lease_ms": LEASE_MS, "flush_ms": 0, **given})


def understood_by_fakeredis(client: Any) -> Any:
    """Let a fakeredis client, synchronous or not, take moves: it rejects a script's first line, ``#!lua …``."""
    register = client.register_script
    client.register_script = lambda script: register(script.partition("\n")[2])
    return client


def _running(kind: Kind) -> Iterator[Server]:
    with Server(kind) as server:
        yield server


@pytest.fixture(scope="session")
def redis_process() -> Iterator[Server]:
    yield from _running("redis")


@pytest.fixture(scope="session")
def valkey_process() -> Iterator[Server]:
    yield from _running("valkey")


def _emptied(server: Server) -> Server:
    with server.client() as client:
        client.flushall()
    return server


@pytest.fixture
def redis_server(redis_process: Server) -> Server:
    """Debian's Redis, empty. It is shared: a test that changes its configuration starts a ``Server`` of its own."""
    return _emptied(redis_process)


@pytest.fixture
def valkey_server(valkey_process: Server) -> Server:
    """The Valkey that ``headrace up`` embeds, empty; shared in the same way."""
    return _emptied(valkey_process)


@pytest.fixture(params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> Server:
    """Both servers in turn."""
    found: Server = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def settings(server: Server) -> Settings:
    """Fast settings for ``server``."""
    return fast_settings(redis_url=server.url)


@pytest.fixture
def broker(settings: Settings) -> Iterator[Broker]:
    """A broker of ``server``, on an empty queue."""
    broker = Broker.connect(settings)
    yield broker
    broker.close()


@pytest.fixture
def fake_broker() -> Iterator[Broker]:
    """A broker of a fakeredis of its own: for logic only, no server runs."""
    client = understood_by_fakeredis(fakeredis.FakeRedis(server=fakeredis.FakeServer(), version=(7, 0)))
    broker = Broker(client, fast_settings())
    yield broker
    broker.close()
