"""What the clients ask of a server: permissions, durability, room."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.conftest import fast_settings
from tests.unit.producer.blocking import BlockingClient
from tests.unit.producer.stub_fleet import StubFleet, text_of

from headrace.broker import Broker
from headrace.config import Settings
from headrace.errors import CancelledError, ConfigurationError
from headrace.keys import Keys, RequestStream
from headrace.producer import Client
from headrace.testing.servers import Server, free_port

KINDS = pytest.mark.parametrize("kind", [Client, BlockingClient])
TENANT_RULES = (
    "on >secret resetkeys resetchannels -@all %W~hr:{test}:requests:*:acme %R~hr:{test}:out:acme:* "
    "&hr:{test}:out:acme:* +xadd +xread +xrange +subscribe +hello +ping"
)


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """One whose configuration and users these tests may change, on a port, because a URL names its user."""
    with Server("redis", ["--appendonly", "yes"], port=free_port()) as server:
        yield server


@pytest.fixture
def admin(own_server: Server) -> Iterator[Any]:
    with own_server.client() as client:
        client.flushall()
        client.config_set("maxmemory", 0)
        yield client


def set_user(admin: Any, user: str, rules: str) -> None:
    admin.execute_command("ACL", "SETUSER", user, "reset", *rules.split())


def url_of(server: Server, user: str) -> str:
    return server.url.replace("redis://", f"redis://{user}:secret@")


@KINDS
def test_a_tenant_with_xadd_and_xread_alone_gets_its_result_and_cancels(
    kind: type[Client] | type[BlockingClient], own_server: Server, admin: Any
) -> None:
    set_user(admin, "acme", TENANT_RULES)
    broker = Broker.connect(fast_settings(redis_url=own_server.url))
    settings = fast_settings(redis_url=url_of(own_server, "acme"))
    fleet = StubFleet(broker, streams=(RequestStream("normal"), RequestStream("bulk", "acme"),
                                       RequestStream("normal", "acme")))  # fmt: skip
    with kind(settings, via="xadd", timeout_s=10) as client, fleet:
        result = client.submit("hello", tenant="acme", lane="bulk", seed=5).result()
        assert result.text == text_of(5, 8)
        assert client.attach(result.id).result() == result
        fleet.until_token = 2
        handle = client.submit("hello", tenant="acme")
        stream = handle.stream()
        next(stream)
        assert handle.cancel() == ""
        with pytest.raises(CancelledError):
            list(stream)
    broker.close()


@KINDS
def test_what_a_user_may_not_do_is_no_outage_and_is_not_tried_again(
    kind: type[Client] | type[BlockingClient], own_server: Server, admin: Any
) -> None:
    set_user(admin, "acme", TENANT_RULES)
    for user in ("acme", "nobody"):
        client = kind(fast_settings(redis_url=url_of(own_server, user)), submit_timeout_s=60)
        with client, pytest.raises(ConfigurationError, match="refuses these credentials"):
            client.submit("hello")


@KINDS
def test_fsync_is_taken_by_a_server_that_syncs_always_and_by_no_other(
    kind: type[Client] | type[BlockingClient], own_server: Server, admin: Any
) -> None:
    with kind(fast_settings(redis_url=own_server.url)) as client:
        admin.config_set("appendfsync", "everysec")
        with pytest.raises(ConfigurationError, match="set appendfsync always"):
            client.submit("hello", durability="fsync")
        assert admin.xlen(Keys("test").requests(RequestStream("normal"))) == 0
        admin.config_set("appendfsync", "always")
        client.submit("hello", durability="fsync")
        client.submit("hello", durability="fsync", via="xadd")
        assert admin.xlen(Keys("test").requests(RequestStream("normal"))) == 2


@KINDS
def test_fsync_that_cannot_be_checked_is_not_taken(
    kind: type[Client] | type[BlockingClient], own_server: Server, admin: Any
) -> None:
    set_user(admin, "producer", "on >secret ~* &* +@all -config")
    with kind(fast_settings(redis_url=url_of(own_server, "producer"))) as client:
        client.submit("hello")
        with pytest.raises(ConfigurationError, match=r"\+config\|get"):
            client.submit("hello", durability="fsync")


@KINDS
def test_a_server_that_would_evict_requests_is_refused(
    kind: type[Client] | type[BlockingClient], own_server: Server, admin: Any
) -> None:
    admin.config_set("maxmemory-policy", "allkeys-lru")
    admin.config_set("maxmemory", 1 << 30)
    with kind(fast_settings(redis_url=own_server.url)) as client, pytest.raises(ConfigurationError, match="evicted"):
        client.submit("hello")
    admin.config_set("maxmemory-policy", "noeviction")


def test_a_client_takes_settings_or_their_values_and_not_both(settings: Settings) -> None:
    with Client(url=settings.redis_url, queue="test") as client:
        assert client.submit("hello").cancel() == "submitted"
    with pytest.raises(ConfigurationError, match="not both"):
        Client(settings, queue="test")
