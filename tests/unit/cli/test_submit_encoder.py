"""``headrace submit`` and ``tail`` where the queue is an encoder's."""

import json
from collections.abc import Iterator

import pytest
from tests.redis.encoder_fleet import EncoderFleet
from tests.unit.cli.conftest import Headrace

from headrace.broker import Broker
from headrace.producer import Client
from headrace.testing.stub_encoder import vector_of


@pytest.fixture
def encoder_fleet(queue: Broker) -> Iterator[EncoderFleet]:
    with EncoderFleet(queue.settings) as fleet:
        yield fleet


def test_submit_prints_what_an_encoder_answers_as_a_line_of_json(
    headrace: Headrace, encoder_fleet: EncoderFleet
) -> None:
    status, out, _ = headrace("submit", "one x", "--field", "task=embed")
    assert (status, json.loads(out)) == (0, {"embeddings": [vector_of([1, 4, 7, 2])]})
    status, out, _ = headrace("submit", "--field", "task=embed", "--field", 'input=["x", "two"]', "--json")
    assert json.loads(out)["done"]["result"] == {"embeddings": [vector_of([1, 7, 2]), vector_of([1, 5, 2])]}
    status, out, _ = headrace("submit", "x", "--field", "task=classify", "--field", "top_k=1", stdin=None)
    assert [label["label"] for label in json.loads(out)["labels"][0]] == ["yes"]


def test_tail_prints_an_answer_that_was_asked_for_in_messagepack(
    headrace: Headrace, encoder_fleet: EncoderFleet
) -> None:
    with Client(encoder_fleet.settings, timeout_s=20) as client:
        client.embed("one x", request_id="a")
    assert json.loads(headrace("tail", "a")[1]) == {"embeddings": [vector_of([1, 4, 7, 2])]}
    assert isinstance(json.loads(headrace("tail", "a", "--json")[1])["done"]["result"]["embeddings"][0], str)


def test_what_does_not_go_together_is_said(headrace: Headrace, encoder_fleet: EncoderFleet) -> None:
    for arguments, words in (
        (("x", "--field", "task=embed", "--chat"), "--chat: embed takes texts"),
        (("x", "--field", "task=embed", "--field", 'input="y"'), "give the text once"),
        (("x",), "is an encoder"),
        (("x", "--field", "task=summon"), "generate, embed, classify, rerank, fill"),
    ):
        status, _, err = headrace("submit", *arguments)
        assert status != 0
        assert words in err
