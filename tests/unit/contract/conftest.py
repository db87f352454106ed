"""Every move is tested on both servers, and under fakeredis, which Hypothesis and unit tests elsewhere rely on."""

from collections.abc import Iterator

import pytest
from tests.conftest import fast_settings
from tests.unit.contract.actors import Actors
from tests.unit.contract.audit import check

from headrace.broker import Broker
from headrace.testing.servers import Server


@pytest.fixture(params=["fake", "redis", "valkey"])
def actors(request: pytest.FixtureRequest) -> Iterator[Actors]:
    """Everybody around an empty queue; afterwards the queue is counted again."""
    if request.param == "fake":
        broker: Broker = request.getfixturevalue("fake_broker")
    else:
        server: Server = request.getfixturevalue(f"{request.param}_server")
        broker = Broker.connect(fast_settings(redis_url=server.url))
    actors = Actors(broker)
    actors.no_amnesty()
    yield actors
    check(broker)
    broker.close()
