"""Both clients while their server is full, goes away, forgets, or comes back."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.conftest import fast_settings
from tests.redis.test_client import AnyClient, Build, _reads_are_short, build, client, ids_of, joined
from tests.unit.producer.stub_fleet import StubFleet, text_of

from headrace.broker import Broker
from headrace.config import Settings
from headrace.errors import BrokerUnavailableError, OverloadedError, UnknownRequestError
from headrace.producer.submission import Via
from headrace.testing.servers import Server
from headrace.wire import Chunk

__all__ = ["_reads_are_short", "build", "client"]


def test_a_full_backlog_and_a_full_server_are_overloaded(settings: Settings, build: Build) -> None:
    client = build(settings.model_copy(update={"max_queued_requests": 1}))
    client.submit("one")
    with pytest.raises(OverloadedError, match="backlog"):
        client.submit("two")


def test_a_server_whose_memory_is_full_is_overloaded(build: Build) -> None:
    with Server("redis") as server:
        with server.client() as plain:
            plain.config_set("maxmemory-policy", "noeviction")
            plain.config_set("maxmemory", 1)
        client = build(fast_settings(redis_url=server.url))
        for via in ("move", "xadd"):
            with pytest.raises(OverloadedError, match="memory is full") as caught:
                client.submit("one", request_id="mine", via=via)
            assert caught.value.request_id == "mine"


def test_a_request_that_the_broker_forgot_in_mid_stream_is_sent_again(
    client: AnyClient, broker: Broker, server: Server
) -> None:
    with server.client() as plain:
        with StubFleet(broker, until_token=5):
            handle = client.submit("hello", seed=5, max_tokens=12)
            stream = handle.stream()
            pieces: list[Chunk] = []
            while not pieces or pieces[-1].num_tokens_after < 5:
                pieces.append(next(stream))
        plain.flushall()
        with StubFleet(broker, chunk_tokens=3) as fleet:
            pieces += stream
    assert fleet.asked == [handle.id]
    assert joined(pieces) == (ids_of(5, 12), text_of(5, 12))


def test_a_request_that_only_an_attached_handle_reads_is_not_sent_again(
    client: AnyClient, broker: Broker, server: Server
) -> None:
    with server.client() as plain, StubFleet(broker, until_token=4):
        handle = client.submit("hello", max_tokens=12)
        stream = client.attach(handle.id, wait_s=0.2).stream()
        next(stream)
        plain.flushall()
        with pytest.raises(UnknownRequestError):
            list(stream)


def test_a_request_whose_end_was_seen_is_not_sent_again(client: AnyClient, broker: Broker, server: Server) -> None:
    with server.client() as plain, StubFleet(broker) as fleet:
        handle = client.submit("hello")
        handle.result()
        plain.flushall()
        with pytest.raises(UnknownRequestError):
            handle.result(timeout_s=10)
    assert len(fleet.asked) == 1


@pytest.mark.parametrize("via", ["move", "xadd"])
def test_a_stream_survives_its_broker_and_takes_no_token_twice(build: Build, via: Via) -> None:
    with Server("valkey", ["--appendonly", "yes", "--appendfsync", "always"]) as server:
        settings = fast_settings(redis_url=server.url)
        broker = Broker.connect(settings)
        with StubFleet(broker, until_token=4) as fleet:
            stream = build(settings).submit("hello", seed=5, max_tokens=12, via=via).stream()
            pieces = [next(stream)]
            server.kill()
            fleet.until_token = 1 << 30
            with ThreadPoolExecutor(1) as pool:
                rest = pool.submit(list, stream)
                time.sleep(0.5)
                server.start()
                pieces += rest.result()
        broker.close()
    assert joined(pieces) == (ids_of(5, 12), text_of(5, 12))


def test_a_stream_whose_broker_does_not_come_back_ends_in_time(build: Build) -> None:
    with Server("redis") as server:
        handle = build(fast_settings(redis_url=server.url)).submit("hello")
        server.kill()
        with pytest.raises(TimeoutError) as caught:
            handle.result(timeout_s=0.5)
    assert isinstance(caught.value.__cause__, BrokerUnavailableError)


def test_a_submission_waits_for_a_broker_that_is_away(build: Build) -> None:
    with Server("redis") as server:
        server.stop()
        client = build(fast_settings(redis_url=server.url))
        with ThreadPoolExecutor(1) as pool:
            state = pool.submit(lambda: client.submit("hello").cancel())
            time.sleep(0.3)
            server.start()
            assert state.result() == "submitted"


def test_a_submission_without_a_broker_fails_and_names_its_request(build: Build) -> None:
    client = build(fast_settings(redis_url="unix:///nowhere/s"), submit_timeout_s=0.1)
    with pytest.raises(BrokerUnavailableError, match="mine has not gone in: no Redis server answers"):
        client.submit("hello", request_id="mine")


def test_a_submission_whose_broker_went_away_fails_and_does_not_say_that_it_came_too_late(build: Build) -> None:
    with Server("redis") as server:
        client = build(fast_settings(redis_url=server.url), submit_timeout_s=0.1)
        client.submit("hello")
        server.kill()
        with pytest.raises(BrokerUnavailableError, match="mine may or may not have gone in"):
            client.submit("hello", request_id="mine")
