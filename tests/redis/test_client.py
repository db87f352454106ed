"""Both clients against real servers, with a fleet made of the moves. The asynchronous one runs in a loop of its own."""

import inspect
import itertools
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.unit.producer.blocking import BlockingClient
from tests.unit.producer.stub_fleet import PROMPT_TOKENS, StubFleet, text_of, token

from headrace.broker import Broker
from headrace.config import Settings
from headrace.errors import (
    CancelledError,
    ExpiredError,
    InvalidRequestError,
    UnknownRequestError,
)
from headrace.producer import AsyncClient, Client, reading
from headrace.producer.async_handle import AsyncHandle
from headrace.producer.handle import Handle
from headrace.testing.servers import Server
from headrace.wire import Chunk, Usage

AnyClient = Client | BlockingClient
Build = Callable[..., AnyClient]


@pytest.fixture(autouse=True)
def _reads_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found after a silent read is found soon."""
    monkeypatch.setattr(reading, "MAX_BLOCK_MS", 100)


@pytest.fixture(params=["sync", "async"])
def build(request: pytest.FixtureRequest) -> Iterator[Build]:
    """Makes clients of one kind, and closes them."""
    made: list[AnyClient] = []

    def make(settings: Settings, **given: Any) -> AnyClient:
        kind = Client if request.param == "sync" else BlockingClient
        made.append(kind(settings, **{"timeout_s": 60, "submit_timeout_s": 5, **given}))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(settings: Settings, build: Build) -> AnyClient:
    return build(settings)


def ids_of(seed: int, num_tokens: int) -> tuple[int, ...]:
    return tuple(token(seed, index) for index in range(num_tokens))


def joined(pieces: list[Chunk]) -> tuple[tuple[int, ...], str]:
    """Tokens and text of pieces that follow each other."""
    for before, piece in itertools.pairwise(pieces):
        assert (piece.i, piece.o) == (before.num_tokens_after, before.o + len(before.text))
    return tuple(token for piece in pieces for token in piece.ids), "".join(piece.text for piece in pieces)


def test_a_result_has_every_token_and_character_once(client: AnyClient, broker: Broker) -> None:
    with StubFleet(broker):
        result = client.submit("hello", seed=5, max_tokens=9).result()
    assert result.ids == ids_of(5, 9)
    assert result.text == text_of(5, 9)
    assert result.reason == "length"
    assert result.usage == Usage(PROMPT_TOKENS, 9)


@pytest.mark.parametrize("encoding", ["json", "mp"])
def test_the_text_comes_in_pieces_in_either_encoding(client: AnyClient, broker: Broker, encoding: str) -> None:
    with StubFleet(broker):
        pieces = list(client.generate(messages=[{"role": "user", "content": "hi"}], seed=5, encoding=encoding))
    assert len(pieces) > 1
    assert "".join(pieces) == text_of(5, 8)


def test_a_late_reader_gets_everything_and_one_that_holds_tokens_gets_the_rest(
    client: AnyClient, broker: Broker
) -> None:
    with StubFleet(broker, chunk_tokens=3):
        handle = client.submit("hello", seed=5, max_tokens=8)
        handle.result()
    late = client.attach(handle.id)
    assert joined(list(late.stream()))[0] == ids_of(5, 8)
    assert joined(list(late.stream(6)))[0] == ids_of(5, 8)[6:]
    assert joined(list(late.stream(4, after_chars=len(text_of(5, 4))))) == (
        ids_of(5, 8)[4:],
        text_of(5, 8)[len(text_of(5, 4)) :],
    )
    (end,) = late.stream(8)
    assert end.done is not None


def test_a_reader_whose_connection_is_killed_in_mid_stream_misses_nothing(
    client: AnyClient, broker: Broker, server: Server
) -> None:
    with StubFleet(broker, until_token=4) as fleet, server.client() as plain:
        stream = client.submit("hello", seed=5, max_tokens=40).stream()
        pieces = [next(stream)]
        plain.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        fleet.until_token = 1 << 30
        pieces += stream
    assert joined(pieces) == (ids_of(5, 40), text_of(5, 40))


def test_cancelling_ends_the_stream_behind_the_tokens_that_came(client: AnyClient, broker: Broker) -> None:
    with StubFleet(broker, until_token=4):
        handle = client.submit("hello", seed=5, max_tokens=40)
        stream = handle.stream()
        pieces: list[Chunk] = []
        while not pieces or pieces[-1].num_tokens_after < 4:
            pieces.append(next(stream))
        assert handle.cancel() == "running"
        with pytest.raises(CancelledError):
            next(stream)
    assert joined(pieces)[0] == ids_of(5, 4)
    assert client.cancel(handle.id) == "done"
    with pytest.raises(CancelledError) as caught:
        client.attach(handle.id).result()
    assert caught.value.request_id == handle.id


def test_a_cancellation_may_come_before_its_request(client: AnyClient, broker: Broker) -> None:
    assert client.cancel("early") == "unknown"
    with pytest.raises(CancelledError):
        client.attach("early").result()
    handle = client.submit("hello", request_id="early")
    with pytest.raises(CancelledError):
        handle.result()


def test_leaving_a_generation_cancels_it(client: AnyClient, broker: Broker) -> None:
    with StubFleet(broker, until_token=4) as fleet:
        pieces = client.generate("hello", max_tokens=40)
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
        (request_id,) = fleet.asked
    assert broker.request_fields(request_id)["reason"] == "cancelled"


def test_a_deadline_that_passes_is_an_error_behind_the_tokens_that_came(client: AnyClient, broker: Broker) -> None:
    # Nobody reaps for one lease after the first reap, which is when this fleet starts.
    with StubFleet(broker, until_token=4):
        stream = client.submit("hello", seed=5, max_tokens=40, deadline_ms=1).stream()
        with pytest.raises(ExpiredError):
            list(stream)


def test_a_request_that_the_fleet_refuses_is_an_error_that_names_the_field(client: AnyClient, broker: Broker) -> None:
    with StubFleet(broker), pytest.raises(InvalidRequestError, match="at most 8 are allowed") as caught:
        client.submit("too long").result()
    assert caught.value.field == "prompt"


def test_what_is_wrong_is_refused_before_anything_is_sent(client: AnyClient, server: Server) -> None:
    with pytest.raises(InvalidRequestError, match="temprature"):
        client.submit("hello", temprature=1)
    with server.client() as plain:
        assert plain.dbsize() == 0


@pytest.mark.parametrize("request_id", [5, None, "", "a b", "a\n", "/1", "x" * 129])
def test_what_cannot_be_an_id_is_refused_at_once(client: AnyClient, server: Server, request_id: Any) -> None:
    for refused in (client.attach, client.cancel):
        with pytest.raises(InvalidRequestError, match=r"^id: ") as caught:
            refused(request_id)
        assert caught.value.field == "id"
    with server.client() as plain:
        assert plain.dbsize() == 0


@pytest.mark.parametrize("seconds", [-1, math.nan])
def test_a_time_that_is_none_is_refused_before_anything_is_sent(
    client: AnyClient, build: Build, settings: Settings, server: Server, seconds: float
) -> None:
    handle = client.attach("mine")
    for refused in (
        lambda: build(settings, timeout_s=seconds),
        lambda: build(settings, submit_timeout_s=seconds),
        lambda: client.attach("mine", wait_s=seconds),
        lambda: list(handle.stream(timeout_s=seconds)),
        lambda: list(handle.text(timeout_s=seconds)),
        lambda: handle.result(seconds),
        lambda: list(client.generate("hello", timeout_s=seconds)),
    ):
        with pytest.raises(InvalidRequestError, match="must be at least 0"):
            refused()
    with server.client() as plain:
        assert plain.dbsize() == 0


def test_an_id_that_nobody_submitted_is_unknown(client: AnyClient) -> None:
    began_s = time.monotonic()
    with pytest.raises(UnknownRequestError):
        client.attach("nobody", wait_s=0.3).result()
    assert time.monotonic() - began_s >= 0.3


def test_a_request_by_plain_xadd_may_be_attached_to_before_it_is_admitted(client: AnyClient, broker: Broker) -> None:
    handle = client.submit("hello", via="xadd", seed=5)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(client.attach(handle.id).result)
        time.sleep(0.3)
        with StubFleet(broker):
            assert result.result().ids == ids_of(5, 8)


def test_a_second_submission_of_an_id_reads_the_first_ones_result(client: AnyClient, broker: Broker) -> None:
    with StubFleet(broker) as fleet:
        first = client.submit("hello", request_id="mine", seed=5)
        second = client.submit("hello", request_id="mine", seed=6)
        assert (first.known_already, second.known_already) == (False, True)
        assert second.result() == first.result()
    assert fleet.asked == ["mine"]


def test_time_is_up_when_it_is_up(client: AnyClient) -> None:
    began_s = time.monotonic()
    with pytest.raises(TimeoutError, match=r"within 0\.3 s"):
        client.submit("hello").result(timeout_s=0.3)
    assert time.monotonic() - began_s >= 0.3


@pytest.mark.parametrize(("one", "other"), [(Client, AsyncClient), (Handle, AsyncHandle)])
def test_both_clients_have_the_same_surface(one: type, other: type) -> None:
    def surface(kind: type) -> dict[str, list[tuple[str, Any]]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: [(p.name, p.default) for p in inspect.signature(method).parameters.values()]
            for name, method in methods
            if not name.startswith("_")
        }

    assert surface(one) == surface(other)
