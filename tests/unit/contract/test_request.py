import math
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidRequestError
from headrace.request import MAX_BAD_WORD_TOKENS, MAX_LIST, MAX_STOP_CHARS, MAX_STOP_STRINGS, Request
from headrace.wire import Failure, decode_body

NAN, INF = math.nan, math.inf
#: Values out of range or of a wrong type, by field. What is right for the type and in range stands in no list.
NUMBERS: list[Any] = ["1", [1], {}, NAN, INF, -INF]
WHOLE: list[Any] = [*NUMBERS, 1.5, True, 10**30]
WRONG: dict[str, list[Any]] = {
    "v": [0, 2, "1", 1.5, True, None],
    "task": ["", "embed", 7, None, ["generate"]],
    "cache": ["yes", 1, 0, None],
    "id": ["", " a", "a b", "ä", "a/0", ":a", "a" * 129, 7, b"a", "a\n"],
    "prompt": ["", [], 7, b"text", [1, "2"], [-1], [2**31], [1.0], [True], {"a": 1}, [[1]]],
    "max_tokens": [*WHOLE, 0, -1, 2**31],
    "min_tokens": [*WHOLE, -1, 2**31, None],
    "temperature": [*NUMBERS, -0.1, 101, True, None],
    "top_p": [*NUMBERS, 0, -0.1, 1.01, True, None],
    "top_k": [*WHOLE, -1, 2**31, None],
    "min_p": [*NUMBERS, -0.1, 1.01, True, None],
    "seed": [*WHOLE, -1, 2**63],
    "n": [*WHOLE, 0, 129, None],
    "echo": ["yes", 1, 0, None],
    "logprobs": [*WHOLE, -1, 21],
    "stop": ["", 7, None, [""], ["x" * (MAX_STOP_CHARS + 1)], ["x"] * (MAX_STOP_STRINGS + 1), [7], {"a": 1}],
    "stop_token_ids": [7, "7", [-1], [2**31], ["7"], [1.0], [1] * (MAX_LIST + 1), None],
    "ignore_eos": ["yes", 1, None],
    "bad_words": [
        "x",
        [""],
        [7],
        ["x"] * (MAX_LIST + 1),
        None,
        [[]],
        [[-1]],
        [["x"]],
        [[1] * (MAX_BAD_WORD_TOKENS + 1)],
    ],
    "logit_bias": [[], {"a": 1.0}, {"1": 101}, {"1": NAN}, {"1": "x"}, {"-1": 1.0}, None],
    "repetition_penalty": [*NUMBERS, 0, 1e-40, 0.009, -1, 101, True, None],
    "presence_penalty": [*NUMBERS, -2.1, 2.1, True, None],
    "frequency_penalty": [*NUMBERS, -2.1, 2.1, True, None],
    "deadline_ms": [*WHOLE, 0, -1, 2**42],
    "ttl_ms": [*WHOLE, 0, -1, 2**42],
    "reply_to": ["", "a b", ":a", "x" * 129, 7, "a\n"],
}
CASES = [(name, value) for name, wrong in WRONG.items() for value in wrong]


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])
def test_a_wrong_value_is_refused_by_the_name_of_its_field(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Request.parse({"prompt": "x"} | {name: value})
    assert caught.value.field == name
    assert str(caught.value).startswith(name)
    assert len(str(caught.value)) < 400
    assert Failure("invalid", str(caught.value), caught.value.field).encode("json")


def test_every_field_has_its_wrong_values_listed_here() -> None:
    assert set(WRONG) | {"messages"} == set(Request.model_fields)


@pytest.mark.parametrize(
    "messages",
    [[], "hello", [{}], [{"role": "user"}], [{"role": "", "content": "x"}], [{"role": "user", "content": 7}], [7],
     [{"role": "user", "content": "x", "name": "y"}], [{"role": "user", "content": "x"}] * (MAX_LIST + 1)],
)  # fmt: skip
def test_wrong_messages_are_refused_by_name(messages: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Request.parse({"messages": messages})
    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    "fields", [{}, {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, {"prompt": None}]
)
def test_a_request_has_one_prompt(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="exactly one of prompt and messages") as caught:
        Request.parse(fields)
    assert caught.value.field == "prompt"


def test_an_unknown_field_is_refused_by_name_and_its_name_is_cut() -> None:
    with pytest.raises(InvalidRequestError, match="best_of: unknown field") as caught:
        Request.parse({"prompt": "x", "best_of": 2})
    assert caught.value.field == "best_of"
    with pytest.raises(InvalidRequestError) as caught:
        Request.parse({"prompt": "x", "y" * 10_000: 2})
    assert len(str(caught.value)) < 100
    with pytest.raises(InvalidRequestError, match=r"messages\[0\]\.name: unknown field"):
        Request.parse({"messages": [{"role": "user", "content": "x", "name": "y"}]})


def test_a_timestamp_of_messagepack_is_no_value_of_any_field() -> None:
    fields = decode_body(msgpack.packb({"prompt": msgpack.Timestamp(2**60, 0)}), "mp")
    with pytest.raises(InvalidRequestError):
        Request.parse(fields)


def test_a_full_request_is_taken_as_it_is() -> None:
    fields = {
        "v": 1, "id": "t1:a.b@c+d=e-f_1", "prompt": [0, 2**31 - 1], "max_tokens": 1, "min_tokens": 0, "temperature": 0,
        "top_p": 1, "top_k": 50, "min_p": 0, "seed": 2**63 - 1, "n": 128, "echo": True, "logprobs": 20,
        "stop": ["x", "y"], "stop_token_ids": [2], "ignore_eos": True, "bad_words": ["x", [1, 2]],
        "logit_bias": {"5": -100}, "repetition_penalty": 1.1, "presence_penalty": -2, "frequency_penalty": 0.5,
        "deadline_ms": 1, "ttl_ms": 1, "reply_to": "gateway:7",
    }  # fmt: skip
    request = Request.parse(fields)
    assert (request.prompt, request.stop_strings, request.reply_to) == ([0, 2**31 - 1], ("x", "y"), "gateway:7")
    assert Request.parse({"prompt": "x", "stop": "end"}).stop_strings == ("end",)


things = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(sorted(Request.model_fields)) | st.text(max_size=8)


@given(st.dictionaries(names, things, max_size=5))
def test_any_fields_are_a_request_or_refused_by_name(fields: dict[str, Any]) -> None:
    try:
        request = Request.parse(fields)
    except InvalidRequestError as error:
        Failure("invalid", str(error), error.field).encode("mp")
    else:
        assert (request.prompt is None) != (request.messages is None)
