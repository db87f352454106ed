"""Requests to encoders: what they may say, and that what they may not say is refused by name."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.encoder_request import REQUESTS, EmbedRequest, EncoderRequest, parse_request
from headrace.errors import InvalidRequestError
from headrace.request import Request

VALID: dict[str, dict[str, Any]] = {
    "embed": {"input": "x"},
    "classify": {"input": "x"},
    "rerank": {"query": "x", "documents": ["y"]},
    "fill": {"input": "[MASK]"},
}
NO_INPUT: list[Any] = [
    "",
    [],
    [""],
    7,
    None,
    [["a"]],
    [1, "a"],
    ["a", 1],
    [[]],
    [1.5],
    [True],
    [-1],
    [[2**31]],
    {"a": 1},
]
WRONG: dict[str, dict[str, list[Any]]] = {
    "embed": {
        "input": NO_INPUT,
        "pooling": ["sum", 1, ["mean"]],
        "normalize": ["yes", 1],
        "dimensions": [0, -1, 1.5, "4", True],
        "encoding_format": ["hex", 1],
    },
    "classify": {"input": NO_INPUT, "text_pair": ["", [], 7, ["a", "b"], ["a"]], "top_k": [-1, 1.5, None]},
    "rerank": {"query": ["", None, 7, ["a"]], "documents": [[], "a", [""], None, [7]], "top_n": [-1, 1.5, None]},
    "fill": {"input": NO_INPUT, "top_k": [0, -1, 1001, None]},
}
COMMON: dict[str, list[Any]] = {
    "truncate": ["yes", 1, None],
    "cache": ["yes", 0, None],
    "v": [0, 2],
    "id": ["a b", 7],
    "deadline_ms": [0],
    "ttl_ms": [0],
    "reply_to": [""],
}
CASES = [
    (task, name, value)
    for task, fields in WRONG.items()
    for name, values in (fields | COMMON).items()
    for value in values
]


@pytest.mark.parametrize(("task", "name", "value"), CASES, ids=[f"{t}-{n}-{i}" for i, (t, n, _) in enumerate(CASES)])
def test_a_wrong_value_is_refused_by_the_name_of_its_field(task: str, name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_request({"task": task, **VALID[task], name: value})
    assert caught.value.field == name
    assert str(caught.value).startswith(name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "input: is empty"),
        ([], "input: is empty"),
        (["a", ""], "input[1]: is empty"),
        ([[1], []], "input[1]: is empty"),
        (None, "input: must be a text, its token ids, or a list of either"),
        (b"ids", "input: must be a text, its token ids, or a list of either"),
        (["a", None], "input: must be texts or token ids, [1] is neither"),
        (["a", b"b"], "input: must be texts or token ids, [1] is neither"),
        ([1, True], "input: must be texts or token ids, [1] is neither"),
        (["a", [1]], "input: texts and token ids cannot be mixed in one request, as [0] and [1] are"),
        ([1, "a"], "input: texts and token ids cannot be mixed in one request, as [0] and [1] are"),
    ],
)
def test_a_refusal_says_what_is_wrong_with_the_texts(given: object, message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_request({"task": "embed", "input": given})
    assert str(caught.value) == message


def test_every_field_has_its_wrong_values_listed_here() -> None:
    for task, fields in WRONG.items():
        assert set(fields) | set(COMMON) | {"task"} == set(REQUESTS[task].model_fields)


@pytest.mark.parametrize("task", list(VALID))
def test_a_field_of_another_task_is_refused_by_name(task: str) -> None:
    with pytest.raises(InvalidRequestError, match="temperature: unknown field"):
        parse_request({"task": task, **VALID[task], "temperature": 0})


def test_without_a_task_text_is_asked_for_and_unknown_tasks_are_refused() -> None:
    assert isinstance(parse_request({"prompt": "x"}), Request)
    for task in ("summon", 7, None, ["embed"]):
        with pytest.raises(InvalidRequestError, match="generate, embed, classify, rerank, fill"):
            parse_request({"task": task, "input": "x"})


@pytest.mark.parametrize("given", ["a", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_one_text_or_many_may_come_as_strings_or_tokens(given: object) -> None:
    request = parse_request({"task": "embed", "input": given})
    assert isinstance(request, EmbedRequest)
    assert request.input == given


def test_pairs_to_classify_are_as_many_as_the_texts() -> None:
    for text, pair in (("a", "b"), (["a", "b"], ["c", "d"])):
        parse_request({"task": "classify", "input": text, "text_pair": pair})
    wrong: list[tuple[Any, Any]] = [("a", ["b"]), (["a"], "b"), (["a", "b"], ["c"]), ([1, 2], "b")]
    for text, pair in wrong:
        with pytest.raises(InvalidRequestError, match="text_pair"):
            parse_request({"task": "classify", "input": text, "text_pair": pair})


names = st.sampled_from(sorted({name for model in REQUESTS.values() for name in model.model_fields}))
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
# Flat or lists of lists, spelt out: a recursive strategy takes long to draw from.
things = leaves | st.lists(leaves, max_size=3) | st.lists(st.lists(leaves, max_size=2), max_size=2)


@given(st.sampled_from(sorted(VALID)), st.dictionaries(names, things, max_size=4))
def test_any_body_is_a_request_or_refused_with_a_name(task: str, fields: dict[str, Any]) -> None:
    try:
        request = parse_request({**VALID[task], **fields, "task": task})
    except InvalidRequestError as error:
        if not error.field or not str(error):
            raise AssertionError("a refusal without a name") from error
    else:
        assert isinstance(request, EncoderRequest)
