"""Calls of encoders: how texts are divided among requests, and how the answers of these become one again."""

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config import Settings
from headrace.encoder_result import Classification, Embeddings, Filling, Label, Mask, Ranked, Ranking
from headrace.errors import CancelledError, DecodeError, ExpiredError, InvalidRequestError, OverloadedError
from headrace.producer.encoder_submission import prepare_encoder
from headrace.producer.encoding import (
    EncoderCall,
    join_embeddings,
    join_labels,
    join_masks,
    join_rankings,
    joined,
)
from headrace.producer.parts import IN_FLIGHT, Parts
from headrace.producer.refusal import counted_from
from headrace.producer.submission import Submission
from headrace.wire import Chunk, Done, Failure, Usage

texts = st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=20)


def flat(requests: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return [text for request in requests for text in request[name]]


@given(texts, st.integers(1, 9))
def test_texts_are_divided_in_their_order_and_none_is_lost(given_: list[str], size: int) -> None:
    requests = EncoderCall.of_input("embed", given_).requests(size)
    assert flat(requests, "input") == given_
    assert all(len(request["input"]) == size for request in requests[:-1])
    pairs = EncoderCall.of_input("classify", given_, [text + "!" for text in given_]).requests(size)
    assert flat(pairs, "text_pair") == [text + "!" for text in flat(pairs, "input")]


def test_tokens_may_come_in_any_sequence() -> None:
    for ids in ([1, 2], (1, 2), range(1, 3), np.array([1, 2]), [np.int64(1), 2]):
        assert EncoderCall.of_input("embed", ids).requests(5) == [{"task": "embed", "input": [1, 2]}]
        assert EncoderCall.of_input("embed", [ids, [7]]).requests(5) == [{"task": "embed", "input": [[1, 2], [7]]}]
    assert EncoderCall.of_input("embed", np.array([[1, 2], [3, 4]])).requests(5)[0]["input"] == [[1, 2], [3, 4]]
    # What is none stays as it is, for the schema to refuse by name.
    assert EncoderCall.of_input("embed", [True, 1.5]).requests(5)[0]["input"] == [True, 1.5]


@pytest.mark.parametrize("given_", [None, 5, [], b"ids", {"a": 1}, {"a"}])
def test_what_is_neither_a_text_nor_many_is_refused(given_: object) -> None:
    with pytest.raises(InvalidRequestError, match="input"):
        EncoderCall.of_input("embed", given_)


@pytest.mark.parametrize("texts_", [["a", None], [None], ["a", 5], ["a", b"ids"], [b"ids"], [{"a"}], [{"a": 1}]])
def test_one_wrong_text_among_many_is_refused_by_the_schema_and_never_taken_for_token_ids(texts_: list[Any]) -> None:
    with pytest.raises(InvalidRequestError, match=r"^input: must be texts or token ids, \[[01]\] is neither|mixed"):
        prepare_encoder(Settings(), EncoderCall.of_input("embed", texts_), 64, {}, "move")


@pytest.mark.parametrize(
    ("texts_", "message"),
    [
        (["a"] * 130 + [""], r"^input\[130\]: is empty$"),
        (["a"] * 130 + [None], r"^input: must be texts or token ids, \[130\] is neither$"),
        (
            ["a"] * 130 + [[1], "b"],
            r"^input: texts and token ids cannot be mixed in one request, as \[128\] and \[130\]",
        ),
        ([[1]] * 130 + [[1, 2, -1]], r"^input\[130\]\[2\]: .*greater than or equal to 0"),
    ],
)
def test_a_text_of_a_long_list_is_refused_by_its_place_in_the_list(texts_: list[Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        prepare_encoder(Settings(), EncoderCall.of_input("embed", texts_), 64, {}, "move")


def test_the_second_text_of_a_pair_and_a_document_are_refused_by_their_places_too() -> None:
    for call, culprit in (
        (EncoderCall.of_input("classify", ["a"] * 70, ["a"] * 69 + [""]), r"^text_pair\[69\]: "),
        (EncoderCall.of_documents("a query", ["a"] * 65 + [""], 0), r"^documents\[65\]: "),
    ):
        with pytest.raises(InvalidRequestError, match=culprit):
            prepare_encoder(Settings(), call, 64, {}, "move")


def test_a_field_that_is_not_divided_keeps_its_places() -> None:
    with pytest.raises(InvalidRequestError, match=r"^pooling: ") as caught:
        prepare_encoder(Settings(), EncoderCall.of_input("embed", ["a"] * 70), 64, {"pooling": "[3]"}, "move")
    with pytest.raises(InvalidRequestError) as same, counted_from(64):
        raise caught.value
    assert same.value is caught.value


@pytest.mark.parametrize("documents", ["one text", None, 5, b"text", {"a": 1}, {"a"}])
def test_documents_are_a_list_and_one_text_is_not_taken_for_its_characters(documents: object) -> None:
    with pytest.raises(InvalidRequestError, match="documents: must be a list of texts"):
        EncoderCall.of_documents("a query", documents, 0)


def test_a_second_text_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="text_pair: must be a list of texts"):
        EncoderCall.of_input("classify", ["a"], 5)


@pytest.mark.parametrize("size", [0, -1, 1.5, math.nan, "8", None])
def test_a_call_is_divided_by_whole_texts_only(size: Any) -> None:
    with pytest.raises(InvalidRequestError, match="texts_per_request: must be an integer, at least 1"):
        EncoderCall.of_input("embed", ["a", "b"]).requests(size)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 7), st.integers(0, 9))
def test_rankings_of_parts_are_the_ranking_of_all(scores: list[float], size: int, top_n: int) -> None:
    def ranked(of: Sequence[float]) -> Ranking:
        order = sorted(range(len(of)), key=lambda index: (-of[index], index))
        best = order[:top_n] if top_n else order
        return Ranking(tuple(Ranked(index, of[index]) for index in best))

    parts = [ranked(scores[begin : begin + size]) for begin in range(0, len(scores), size)]
    assert join_rankings(parts, size, top_n) == ranked(scores)


def test_other_answers_are_put_one_behind_the_other() -> None:
    assert join_embeddings([Embeddings((b"a", b"b")), Embeddings((b"c",))]) == Embeddings((b"a", b"b", b"c"))
    one, two = (Label("x", 0.5),), (Label("y", 0.5),)
    assert join_labels([Classification((one,)), Classification((two,))]) == Classification((one, two))
    assert join_masks([Filling(((),)), Filling(((Mask(1, ()),),))]) == Filling(((), (Mask(1, ()),)))
    with pytest.raises(DecodeError, match="asked for Embeddings, answered with Ranking"):
        joined([Ranking(())], join_embeddings, Embeddings)


def submissions(count: int, **options: Any) -> list[Submission]:
    call = EncoderCall.of_input("embed", [f"text {number}" for number in range(count)])
    return prepare_encoder(Settings(queue="q"), call, 1, {"request_id": "a", **options}, "move")


def answer(number: int) -> Chunk:
    result = {"embeddings": [number.to_bytes(4, "little")]}
    return Chunk(0, 0, (), "", Done("stop", Usage(1, 0), result=result))


def test_what_a_call_asks_is_checked_and_named() -> None:
    assert [submission.request_id for submission in submissions(3)] == ["a.0", "a.1", "a.2"]
    assert [submission.request_id for submission in submissions(1)] == ["a"]
    assert len({submission.request_id for submission in submissions(3, request_id=None)}) == 3
    for options, field in (({"task": "fill"}, "task"), ({"input": "x"}, "input"), ({"temperature": 1}, "temperature")):
        with pytest.raises(InvalidRequestError) as caught:
            submissions(2, **options)
        assert caught.value.field == field


@given(st.integers(1, 150), st.integers(0, 1000))
def test_every_request_is_sent_once_and_read_to_its_end_whatever_the_order(count: int, seed: int) -> None:
    dice, parts = random.Random(seed), Parts(submissions(count), math.inf)
    asked: list[str] = []
    pending: set[str] = set()
    while not parts.ended:
        while sends := parts.next_sends(0.0):
            taken = sends[: dice.randint(1, len(sends))]
            parts.went(range(len(taken)), 0.0)
            asked += [submission.request_id for submission in taken]
            pending |= {submission.request_id for submission in taken}
        assert len(parts.bundle) <= IN_FLIGHT
        step = parts.bundle.next_round(0.0)
        ended = dice.sample(sorted(pending), dice.randint(1, len(pending)))
        pending -= set(ended)
        chunks = {name: [answer(int(name.partition(".")[2] or 0))] for name in ended}
        parts.take(parts.bundle.got(step, chunks, 0.0))
    assert len(asked) == len(set(asked)) == count == parts.num_done
    found = joined(parts.answers, join_embeddings, Embeddings)
    assert [int.from_bytes(vector, "little") for vector in found.packed] == list(range(count))


def test_a_request_that_fails_ends_the_call() -> None:
    parts = Parts(submissions(2), math.inf)
    parts.went((0, 1), 0.0)
    failed = Chunk(0, 0, (), "", Done("error", Usage(1, 0), Failure("invalid", "too long", "input")))
    pieces = parts.bundle.got(parts.bundle.next_round(0.0), {"a.1": [failed]}, 0.0)
    with pytest.raises(InvalidRequestError, match="too long"):
        parts.take(pieces)
    assert parts.bundle.names == ["a.0"], "what is left is known, to be cancelled"


def test_what_the_fleet_says_of_a_part_counts_texts_as_the_call_does() -> None:
    call = EncoderCall.of_input("embed", ["x"] * 130)
    parts = Parts(prepare_encoder(Settings(queue="q"), call, 64, {"request_id": "a"}, "move"), math.inf)
    parts.went((0, 1, 2), 0.0)
    failed = Chunk(0, 0, (), "", Done("error", Usage(1, 0), Failure("invalid", "input[5]: 999 tokens", "input")))
    with pytest.raises(InvalidRequestError, match=r"^input\[69\]: 999 tokens$") as caught:
        parts.take(parts.bundle.got(parts.bundle.next_round(0.0), {"a.1": [failed]}, 0.0))
    assert (caught.value.field, caught.value.request_id) == ("input", "a.1")


def test_a_full_backlog_is_waited_for_only_while_something_will_end() -> None:
    parts = Parts(submissions(3), math.inf)
    with pytest.raises(OverloadedError):
        parts.refused(OverloadedError("full"))
    parts.went((0,), 0.0)
    parts.refused(OverloadedError("full"))
    assert not parts.next_sends(0.0)
    parts.take(parts.bundle.got(parts.bundle.next_round(0.0), {"a.0": [answer(0)]}, 0.0))
    assert len(parts.next_sends(0.0)) == 2


def test_a_request_that_was_accepted_behind_a_refused_one_is_read_and_the_refused_one_is_sent_again() -> None:
    parts = Parts(submissions(3), math.inf)
    parts.went((0, 2), 0.0)
    assert parts.bundle.names == ["a.0", "a.2"]
    assert [submission.request_id for submission in parts.next_sends(0.0)] == ["a.1"]


def test_a_call_that_is_withdrawn_sends_nothing_more_and_has_no_answer() -> None:
    parts = Parts(submissions(100), math.inf)
    parts.went((0,), 0.0)
    parts.withdraw()
    assert not parts.next_sends(0.0)
    parts.take(parts.bundle.got(parts.bundle.next_round(0.0), {"a.0": [answer(0)]}, 0.0))
    assert parts.ended
    with pytest.raises(CancelledError):
        _ = parts.answers


def test_a_deadline_counts_from_the_call_and_not_from_when_a_part_is_sent() -> None:
    made = submissions(1, deadline_ms=1_000)
    parts = Parts(made, math.inf)
    (later,) = parts.next_sends(made[0].made_s + 0.4)
    assert later.fields["deadline_ms"] == pytest.approx(600, abs=1)
    with pytest.raises(ExpiredError):
        parts.next_sends(made[0].made_s + 2)
