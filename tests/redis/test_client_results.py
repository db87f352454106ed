"""Several results of one request, echoes and logprobs, as both clients see them on real servers."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.redis.test_client import AnyClient, Build, _reads_are_short, build, client, ids_of
from tests.unit.producer.stub_fleet import PROMPT_TEXT, PROMPT_TOKENS, StubFleet, text_of

from headrace.broker import Broker
from headrace.config import Settings
from headrace.errors import CancelledError, InvalidRequestError, OverloadedError
from headrace.testing.servers import Server
from headrace.wire import Chunk, Echo, Usage

__all__ = ["_reads_are_short", "build", "client"]


def test_several_results_come_in_order(client: AnyClient, broker: Broker) -> None:
    with StubFleet(broker):
        result = client.submit("hello", seed=5, max_tokens=9, n=3).result()
    assert [choice.ids for choice in result.choices] == [ids_of(5 + index, 9) for index in range(3)]
    assert [choice.text for choice in result.choices] == [text_of(5 + index, 9) for index in range(3)]
    assert [choice.id for choice in result.results] == [f"{result.id}/{index}" for index in range(3)]
    assert [choice.usage for choice in result.results] == [Usage(PROMPT_TOKENS, 9)] * 3
    assert (result.text, result.reason, result.usage) == (text_of(5, 9), "length", Usage(PROMPT_TOKENS, 27))


def test_one_result_is_its_only_choice(client: AnyClient, broker: Broker) -> None:
    with StubFleet(broker):
        result = client.submit("hello").result()
    assert result.choices == (result,)


def test_chunks_of_several_results_come_as_they_grow_and_say_whose_they_are(client: AnyClient, broker: Broker) -> None:
    with StubFleet(broker, until_token=4) as fleet:
        stream = client.submit("hello", seed=5, max_tokens=12, n=2).stream()
        pieces: list[Chunk] = []
        while {piece.index for piece in pieces if piece.num_tokens_after >= 4} != {0, 1}:
            pieces.append(next(stream))
        fleet.until_token = 1 << 30
        pieces += stream
    *parts, end = pieces
    for index in (0, 1):
        own = [piece for piece in parts if piece.index == index]
        assert tuple(token for piece in own for token in piece.ids) == ids_of(5 + index, 12)
        for before, piece in itertools.pairwise(own):
            assert (piece.i, piece.o) == (before.num_tokens_after, before.o + len(before.text))
    assert end.index is None
    assert end.done is not None
    assert end.done.usage == Usage(PROMPT_TOKENS, 24)


def test_a_late_reader_finds_several_results_by_the_requests_name_and_each_by_its_own(
    client: AnyClient, broker: Broker
) -> None:
    with StubFleet(broker):
        handle = client.submit("hello", seed=5, n=2)
        result = handle.result()
    assert client.attach(handle.id).result() == result
    assert client.attach(f"{handle.id}/1").result() == result.results[1]
    assert [token for piece in client.attach(f"{handle.id}/1").stream(6) for token in piece.ids] == [*ids_of(6, 8)[6:]]


def test_tokens_of_several_results_cannot_be_held_as_one(client: AnyClient, broker: Broker) -> None:
    with StubFleet(broker):
        handle = client.submit("hello", n=2)
        handle.result()
    with pytest.raises(ValueError, match="has 2 results"):
        list(client.attach(handle.id).stream(3))


def test_text_of_several_results_is_refused(client: AnyClient, broker: Broker) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        list(client.generate("hello", n=2))
    assert caught.value.field == "n"
    with StubFleet(broker), pytest.raises(InvalidRequestError):
        list(client.submit("hello", n=2).text())


def test_cancelling_ends_all_results_behind_the_tokens_that_came(client: AnyClient, broker: Broker) -> None:
    with StubFleet(broker, until_token=4):
        handle = client.submit("hello", seed=5, max_tokens=40, n=2)
        stream = handle.stream()
        next(stream)
        assert handle.cancel() == "forked"
        with pytest.raises(CancelledError):
            list(stream)
    assert client.attach(f"{handle.id}/1").cancel() == "done"


def test_a_result_that_ends_in_an_error_does_not_keep_the_others_from_being_read(
    client: AnyClient, broker: Broker
) -> None:
    with StubFleet(broker, until_token=4) as fleet:
        handle = client.submit("hello", seed=5, max_tokens=8, n=2)
        stream = handle.stream()
        pieces = [next(stream)]
        client.cancel(f"{handle.id}/0")
        fleet.until_token = 1 << 30
        with pytest.raises(CancelledError) as caught:
            pieces.extend(stream)
        assert caught.value.request_id == f"{handle.id}/0"
    assert tuple(token for piece in pieces if piece.index == 1 for token in piece.ids) == ids_of(6, 8)


def test_several_results_by_plain_xadd(build: Build, settings: Settings, broker: Broker) -> None:
    client = build(settings, via="xadd")
    with StubFleet(broker):
        assert len(client.submit("hello", seed=5, n=2).result().choices) == 2


def test_several_results_that_the_broker_forgot_in_mid_stream_are_sent_again(
    client: AnyClient, broker: Broker, server: Server
) -> None:
    with server.client() as plain:
        with StubFleet(broker, until_token=5):
            handle = client.submit("hello", seed=5, max_tokens=12, n=2)
            stream = handle.stream()
            pieces: list[Chunk] = []
            while {piece.index for piece in pieces if piece.num_tokens_after >= 5} != {0, 1}:
                pieces.append(next(stream))
        plain.flushall()
        with StubFleet(broker, chunk_tokens=3) as fleet:
            pieces += stream
    assert fleet.asked == [handle.id]
    for index in (0, 1):
        assert tuple(t for piece in pieces if piece.index == index for t in piece.ids) == ids_of(5 + index, 12)


def test_several_results_survive_their_broker(build: Build, settings: Settings) -> None:
    with Server("valkey", ["--appendonly", "yes", "--appendfsync", "always"]) as server:
        own = settings.model_copy(update={"redis_url": server.url})
        broker = Broker.connect(own)
        with StubFleet(broker, until_token=4) as fleet:
            stream = build(own).submit("hello", seed=5, max_tokens=12, n=2).stream()
            pieces = [next(stream)]
            server.kill()
            fleet.until_token = 1 << 30
            with ThreadPoolExecutor(1) as pool:
                rest = pool.submit(list, stream)
                time.sleep(0.5)
                server.start()
                pieces += rest.result()
        broker.close()
    for index in (0, 1):
        assert tuple(t for piece in pieces if piece.index == index for t in piece.ids) == ids_of(5 + index, 12)


def test_a_backlog_without_room_for_all_results_is_overloaded(build: Build, settings: Settings, broker: Broker) -> None:
    broker.settings = settings.model_copy(update={"max_queued_requests": 1})
    client = build(settings, via="xadd")
    with StubFleet(broker), pytest.raises(OverloadedError):
        client.submit("hello", n=2).result()


def test_an_echo_comes_first_and_once_and_only_from_the_beginning(client: AnyClient, broker: Broker) -> None:
    with StubFleet(broker, until_token=0) as fleet:
        handle = client.submit("hello", seed=5, max_tokens=8, echo=True)
        stream = handle.stream()
        first = next(stream)
        assert (first.echo, first.ids, first.text) == (Echo((1, 2, 3), PROMPT_TEXT), (), "")
        fleet.until_token = 1 << 30
        rest = list(stream)
    assert all(piece.echo is None for piece in rest)
    late = client.attach(handle.id)
    assert [piece.echo is not None for piece in late.stream()].index(True) == 0
    for held in (1, 2, 8):
        assert not any(piece.echo for piece in late.stream(held, after_chars=len(text_of(5, held))))
    result = late.result()
    assert (result.echo, result.text) == (first.echo, text_of(5, 8))
    assert "".join(late.text()) == PROMPT_TEXT + text_of(5, 8)


def test_waiting_behind_an_echo_reads_no_more_than_waiting_without_one(client: AnyClient, broker: Broker) -> None:
    """Previously tried: reading behind token 0 finds the echo again at once, for ever."""
    with StubFleet(broker, until_token=0):
        stream = client.submit("hello", echo=True, max_tokens=4).stream(timeout_s=1.5)
        next(stream)
        before = broker.client.info("commandstats").get("cmdstat_xread", {}).get("calls", 0)
        with pytest.raises(TimeoutError):
            next(stream)
        assert broker.client.info("commandstats")["cmdstat_xread"]["calls"] - before < 40


def test_every_result_has_its_echo(client: AnyClient, broker: Broker) -> None:
    with StubFleet(broker):
        result = client.submit("hello", n=2, echo=True).result()
    assert [choice.echo and choice.echo.text for choice in result.results] == [PROMPT_TEXT] * 2


def test_logprobs_come_a_token_each_however_chunks_are_cut(client: AnyClient, broker: Broker) -> None:
    with StubFleet(broker, chunk_tokens=3):
        handle = client.submit("hello", seed=5, max_tokens=8)
        result = handle.result()
    assert [token.logprob for token in result.logprobs] == [-index / 8 for index in range(8)]
    (piece, *_) = client.attach(handle.id).stream(4, after_chars=len(text_of(5, 4)))
    assert (piece.i, len(piece.ids), [token.logprob for token in piece.logprobs]) == (4, 2, [-0.5, -0.625])
