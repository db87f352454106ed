"""What clients ask of encoders: a real server, scheduler and engine, and a model whose results can be foretold."""

import asyncio
import threading
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.conftest import fast_settings
from tests.redis.encoder_fleet import EncoderFleet
from tests.waiting import LIMIT_S, until

from headrace.encoder_result import Classification, Embeddings, Filling, Ranking
from headrace.errors import CancelledError, ExpiredError, InvalidRequestError, OverloadedError
from headrace.producer import AsyncClient, Client
from headrace.testing.servers import Server
from headrace.testing.stub_encoder import vector_of

WORDS = {"one": 4, "two": 5, "three": 6, "x": 7}


def vector(text: str) -> "array[float]":
    return array("f", vector_of([1, *(WORDS[word] for word in text.split()), 2]))


@pytest.fixture
def fleet(valkey_server: Server) -> Iterator[EncoderFleet]:
    with EncoderFleet(fast_settings(redis_url=valkey_server.url, cache_entries=100)) as fleet:
        yield fleet


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, fleet: EncoderFleet) -> Callable[..., Any]:
    """Makes a call of either client, by its name."""

    def sync(name: str, *args: Any, **options: Any) -> Any:
        with Client(fleet.settings, timeout_s=20) as client:
            return getattr(client, name)(*args, **options)

    async def one(name: str, *args: Any, **options: Any) -> Any:
        async with AsyncClient(fleet.settings, timeout_s=20) as client:
            return await getattr(client, name)(*args, **options)

    return sync if request.param == "sync" else lambda *args, **options: asyncio.run(one(*args, **options))


def test_texts_become_vectors_whichever_form_they_come_in(call: Callable[..., Any]) -> None:
    one = call("embed", "one two")
    assert isinstance(one, Embeddings)
    assert one.vector == vector("one two")
    many = ("x", "one two three", "two")
    for encoding in ("mp", "json"):
        found = call("embed", many, encoding=encoding)
        assert list(found.vectors) == [vector(text) for text in many]
    assert call("embed", [4, 5]).vector == array("f", vector_of([4, 5]))
    assert call("embed", [(4, 5), (7,)]).vectors == (array("f", vector_of([4, 5])), array("f", vector_of([7])))


def test_many_texts_become_several_requests_and_one_answer_in_their_order(
    call: Callable[..., Any], fleet: EncoderFleet
) -> None:
    texts = ["x " * (1 + index % 9) for index in range(250)]
    found = call("embed", texts, texts_per_request=3, request_id="many")
    assert list(found.vectors) == [vector(text) for text in texts]
    assert fleet.broker.request_fields("many.83")["state"] == "done"
    assert fleet.broker.request_fields("many.84") == {}


def test_each_task_has_its_own_answer(call: Callable[..., Any]) -> None:
    labels = call("classify", ["x", "x x x x x x"], texts_per_request=1, top_k=1)
    assert isinstance(labels, Classification)
    assert [[each.label for each in text] for text in labels.labels] == [["yes"], ["yes"]]
    assert [text[0].score for text in labels.labels] == pytest.approx([1 - 1 / 3, 1 - 1 / 8])
    pair = call("classify", "x", text_pair="one")
    assert [each.label for each in pair.labels[0]] == ["yes", "no"]
    masks = call("fill", "one [MASK] x", top_k=2)
    assert isinstance(masks, Filling)
    assert [(mask.position, [each.id for each in mask.candidates]) for mask in masks.masks[0]] == [(2, [0, 1])]


def test_a_model_without_a_fitting_head_refuses_and_nobody_else_is_disturbed(call: Callable[..., Any]) -> None:
    with pytest.raises(InvalidRequestError, match="2 labels and ranks nothing"):
        call("rerank", "x", ["one", "two"])
    with pytest.raises(InvalidRequestError, match=r"input\[1\]: 42 tokens"):
        call("embed", ["x", "x " * 40])
    with pytest.raises(InvalidRequestError, match=r"input\[5\]: 42 tokens"):
        call("embed", [*["x"] * 5, "x " * 40, "x"], texts_per_request=2)
    assert call("embed", ["x", "x " * 40], truncate=True).vectors[1][0] == 32


def test_what_is_wrong_is_said_before_anything_is_sent(call: Callable[..., Any], fleet: EncoderFleet) -> None:
    for name, args, options, culprit in (
        ("embed", ([],), {}, "input"),
        ("embed", (5,), {}, "input"),
        ("embed", (["x"],), {"colour": 1}, "colour"),
        ("embed", (["x"],), {"input_": 1}, "input_"),
        ("embed", (["x"],), {"task": "fill"}, "task"),
        ("embed", (["x"],), {"texts_per_request": 0}, "texts_per_request"),
        ("classify", (["x"],), {"text_pair": ["a", "b"]}, "text_pair"),
        ("rerank", ("x", []), {}, "documents"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            call(name, *args, **options)
        assert caught.value.field == culprit
    assert fleet.broker.client.xlen(fleet.broker.keys.prefix + "requests") == 0
    assert fleet.runner.batches == []


def test_a_call_that_fails_in_one_request_cancels_its_others(call: Callable[..., Any], fleet: EncoderFleet) -> None:
    fleet.paused = True
    texts = ["x"] * 20 + ["x " * 40] + ["x"] * 20
    with pytest.raises(InvalidRequestError, match="42 tokens"):
        call("embed", texts, texts_per_request=1, request_id="a")
    until(lambda: fleet.broker.load()["queued"] == 0)
    assert fleet.broker.request_fields("a.0")["reason"] == "cancelled"


def test_time_that_is_up_cancels_a_call(call: Callable[..., Any], fleet: EncoderFleet) -> None:
    fleet.paused = True
    with pytest.raises(TimeoutError):
        call("embed", ["x", "one"], texts_per_request=1, request_id="late", timeout_s=0.3)
    assert fleet.broker.request_fields("late.1")["reason"] == "cancelled"
    with pytest.raises(ExpiredError):
        call("embed", "x", deadline_ms=50)


def test_a_request_to_an_encoder_can_be_cancelled_by_anybody(fleet: EncoderFleet) -> None:
    fleet.paused = True
    with Client(fleet.settings, timeout_s=20) as client:
        handle = client.submit(task="embed", input=["x", "one"])
        client.cancel(handle.id)
        with pytest.raises(CancelledError):
            handle.result()


def test_a_full_backlog_is_waited_for_where_something_will_end(call: Callable[..., Any], fleet: EncoderFleet) -> None:
    narrow = fleet.settings.model_copy(update={"max_queued_requests": 3})
    with Client(narrow, timeout_s=20) as client:
        texts = ["x " * (1 + index % 5) for index in range(30)]
        found = client.embed(texts, texts_per_request=1, cache=False)
        assert list(found.vectors) == [vector(text) for text in texts]
        fleet.paused = True
        for index in range(3):
            client.submit(task="embed", input="x", request_id=f"full-{index}")
        with pytest.raises(OverloadedError):
            client.embed("x", cache=False)


def test_the_same_question_is_answered_without_a_worker(call: Callable[..., Any], fleet: EncoderFleet) -> None:
    first = call("embed", ["one", "two"])
    until(lambda: fleet.broker.client.exists("hr:{test}:cache"))
    fleet.paused = True
    num_batches = len(fleet.runner.batches)
    assert call("embed", [[1, 4, 2], [1, 5, 2]]) == first
    assert len(fleet.runner.batches) == num_batches
    with pytest.raises(TimeoutError):
        call("embed", ["one", "two"], cache=False, timeout_s=0.3)


def test_the_same_question_twice_at_once_is_answered_twice(fleet: EncoderFleet) -> None:
    answers: list[Embeddings] = []

    def ask() -> None:
        with Client(fleet.settings, timeout_s=20) as client:
            answers.append(client.embed("one two"))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.vector for answer in answers] == [vector("one two")] * 6


def test_a_client_that_may_only_xadd_gets_its_vectors_too(fleet: EncoderFleet) -> None:
    with Client(fleet.settings, via="xadd", timeout_s=20) as client:
        assert client.embed(["x", "one", "two"], texts_per_request=2).vectors[2] == vector("two")


def test_a_result_tells_what_it_was_and_what_it_cost(fleet: EncoderFleet) -> None:
    with Client(fleet.settings, timeout_s=20) as client:
        result = client.submit(task="embed", input=["one", "two x"]).result()
        assert isinstance(result.answer, Embeddings)
        assert (result.text, result.ids, result.reason) == ("", (), "stop")
        assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (7, 0)
        assert not isinstance(result.answer, Ranking)


def test_a_server_that_goes_and_comes_back_empty_costs_no_answer() -> None:
    with Server("valkey") as server:
        settings = fast_settings(redis_url=server.url)
        with EncoderFleet(settings, paused=True) as fleet, Client(settings, timeout_s=30) as client:
            texts = ["x " * (1 + index % 5) for index in range(12)]
            answers: list[Embeddings] = []
            asking = threading.Thread(target=lambda: answers.append(client.embed(texts, texts_per_request=4)))
            asking.start()
            until(lambda: fleet.broker.load()["batches"] > 0)
            server.kill()
            server.start()
            fleet.paused = False
            asking.join(LIMIT_S)
            assert [list(answer.vectors) for answer in answers] == [[vector(text) for text in texts]]
