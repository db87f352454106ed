import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from headrace.job import SamplingParams
from headrace.workers.channel import Add, Decoder, Drop, Encoded, Message, Tokens, encode
from headrace.workers.engine.link import CourierGoneError, CourierLink


@pytest.fixture
def pair() -> Iterator[tuple[CourierLink, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield CourierLink(ours), theirs


def test_messages_that_arrived_are_taken_together_and_in_order(pair: tuple[CourierLink, socket.socket]) -> None:
    link, courier = pair
    drops = [Drop((row,)) for row in range(5)]
    data = b"".join(encode(drop) for drop in drops)
    courier.sendall(data[:-3])
    assert link.receive(0) == drops[:-1]
    assert link.receive(0) == []
    courier.sendall(data[-3:])
    assert link.receive(5) == drops[-1:]


def test_a_step_does_not_wait_for_a_courier_that_is_busy(pair: tuple[CourierLink, socket.socket]) -> None:
    link, courier = pair
    sent = [Tokens(tuple((row, step, "") for row in range(256)), step_ms=3.0, num_tokens=256) for step in range(500)]
    for tokens in sent:
        link.send(tokens)  # far more than the socket holds, and nobody reads
    decoder, received = Decoder(), list[Message]()
    courier.setblocking(False)
    while len(received) < len(sent):
        with suppress(BlockingIOError):
            received.extend(decoder.feed(courier.recv(1 << 16)))
        assert link.receive(0) == []
    assert received == sent
    courier.sendall(encode(Drop((1,))))
    assert link.receive(1) == [Drop((1,))]


def test_an_idle_engine_sends_on_as_soon_as_a_courier_reads_again(pair: tuple[CourierLink, socket.socket]) -> None:
    link, courier = pair
    sent = Tokens(tuple((row, 7, "") for row in range(100_000)))
    link.send(sent)

    def wait() -> None:
        while link._unsent:
            link.receive(3600)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    decoder, received = Decoder(), list[Message]()
    courier.settimeout(20)
    while not received:
        received.extend(decoder.feed(courier.recv(1 << 16)))
    courier.sendall(encode(Drop((1,))))  # it may wait for this by now
    waiting.join(timeout=20)
    assert not waiting.is_alive()
    assert received == [sent]


@pytest.mark.parametrize("size_bytes", [10, 1 << 20])
def test_where_nothing_may_be_kept_a_message_is_on_its_way_before_the_next_step(
    pair: tuple[CourierLink, socket.socket], size_bytes: int
) -> None:
    link, courier = CourierLink(pair[0]._socket, most_unsent_bytes=0), pair[1]
    answers = Encoded(((1, b"x" * size_bytes, ""),))
    received: list[Message] = []

    def read() -> None:
        decoder = Decoder()
        while not received:
            received.extend(decoder.feed(courier.recv(1 << 16)))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    link.send(answers)
    thread.join(timeout=20)  # without another call of the link
    assert received == [answers]


def test_ends_that_write_to_each_other_lose_nothing_and_do_not_wait_for_ever(
    pair: tuple[CourierLink, socket.socket],
) -> None:
    """Both send far more than a socket holds, and the courier does not read before it has written all of it."""
    link, courier = CourierLink(pair[0]._socket, most_unsent_bytes=1000), pair[1]
    params = SamplingParams(1, 0, 0.0, 0, 1.0, 0.0, 0, (), (), True)
    adds: list[Message] = [Add(row, (7,) * 50_000, (), params) for row in range(20)]
    sent = [Tokens(tuple((row, step, "") for row in range(100))) for step in range(2000)]
    received: list[Message] = []

    def write_then_read() -> None:
        courier.sendall(b"".join(encode(add) for add in adds))
        decoder = Decoder()
        while len(received) < len(sent):
            received.extend(decoder.feed(courier.recv(1 << 16)))

    thread = threading.Thread(target=write_then_read)
    thread.start()
    for tokens in sent:
        link.send(tokens)
        assert len(link._unsent) <= 1000
    assert link.receive(0) == adds, "read while the courier's own messages were in the way"
    while thread.is_alive():
        assert link.receive(0.1) == []
    assert received == sent


def test_a_courier_that_is_gone_is_noticed_by_reading_and_by_writing(
    pair: tuple[CourierLink, socket.socket],
) -> None:
    link, courier = pair
    courier.close()
    with pytest.raises(CourierGoneError):
        link.receive(5)
    with pytest.raises(CourierGoneError):
        link.send(Tokens(((1, 2, ""),)))
