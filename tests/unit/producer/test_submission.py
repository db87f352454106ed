import math
import time
from array import array
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config import Settings
from headrace.errors import ExpiredError, InvalidRequestError, OverloadedError
from headrace.keys import RequestStream
from headrace.moves import Submitted
from headrace.producer.cost import estimate_cost_tokens
from headrace.producer.options import checked_seconds
from headrace.producer.submission import Submission, prepare
from headrace.request import Request
from headrace.wire import decode_body

SETTINGS = Settings(queue="test", max_body_bytes=200, max_context_tokens=100, default_max_tokens=40)


def prepared(prompt: Any = "hello", messages: Any = None, *, settings: Settings = SETTINGS, **given: Any) -> Submission:
    how: dict[str, Any] = {"lane": "normal", "tenant": "", "request_id": None, "encoding": "mp", "via": "move",
                           "durability": "memory"}  # fmt: skip
    how |= {name: given.pop(name) for name in list(given) if name in how}
    return prepare(settings, prompt, messages, given, **how)


def test_a_submission_draws_an_id_and_a_seed_so_that_sent_twice_it_is_one_request() -> None:
    first, second = prepared(), prepared()
    assert first.request_id != second.request_id
    assert first.fields["seed"] != second.fields["seed"]
    assert decode_body(first.body, "mp") == {"prompt": "hello", "seed": first.fields["seed"], "cache": False}
    assert first.body == first.again(time.monotonic() + 9).body


def test_only_answers_by_a_drawn_seed_are_kept_out_of_the_cache() -> None:
    assert "cache" not in prepared(seed=5).fields
    assert "cache" not in prepared(temperature=0).fields
    assert prepared(cache=True).fields["cache"] is True
    assert prepared(None, task="embed", input="hello").fields == {"task": "embed", "input": "hello"}


def test_a_seed_and_an_id_that_are_given_stay() -> None:
    submission = prepared(seed=0, request_id="mine")
    assert submission.fields["seed"] == 0
    assert submission.request_id == "mine"


def test_a_tenants_id_begins_with_its_name() -> None:
    submission = prepared(tenant="acme", lane="bulk")
    assert submission.request_id.startswith("acme:")
    assert submission.stream == RequestStream("bulk", "acme")
    assert prepared(tenant="acme", request_id="acme:7").request_id == "acme:7"
    with pytest.raises(InvalidRequestError, match="must begin with acme:") as caught:
        prepared(tenant="acme", request_id="7")
    assert caught.value.field == "id"


@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        ({"temprature": 1.0}, "temprature", "unknown field"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"prompt": None}, "prompt", "exactly one"),
        ({"messages": [{"role": "user", "content": "x"}]}, "prompt", "exactly one"),
        ({"prompt": "a\ud800"}, "prompt", "prompt"),
        ({"stop": ["\udfff"]}, "stop", "stop"),
        ({"prompt": None, "messages": [{"role": "user", "content": "\ud800"}]}, "messages", "messages"),
        ({"prompt": "x" * 200}, "prompt", "at most 200 are allowed"),
        ({"prompt": None, "messages": [{"role": "user", "content": "x" * 200}]}, "messages", "at most 200"),
        ({"request_id": "no spaces"}, "id", "'no spaces' cannot be a request's"),
        ({"request_id": "a\n"}, "id", "cannot be a request's"),
        ({"request_id": "a/1"}, "id", "cannot be a request's"),
        ({"request_id": ""}, "id", "cannot be a request's"),
        ({"request_id": "x" * 129}, "id", "1 to 128"),
        ({"request_id": 5}, "id", "id: must be a string, 5 is none"),
        ({"prompt": b"hello"}, "prompt", "prompt: must be text or token ids, not bytes"),
        ({"prompt": {1, 2}}, "prompt", "not set"),
        ({"prompt": {1: 2}}, "prompt", "not dict"),
        ({"prompt": 5}, "prompt", "not int"),
        ({"prompt": [1, 2.5]}, "prompt", "one integer each: 'float'"),
        ({"prompt": numpy.ones((2, 2), int)}, "prompt", "one integer each"),
        ({"prompt": numpy.ones(2)}, "prompt", "one integer each"),
        ({"prompt": [True]}, "prompt", "integer"),
        ({"prompt": [-1]}, "prompt", "prompt"),
        ({"prompt": range(0)}, "prompt", "must not be empty"),
        ({"tenant": 5}, "tenant", "must be a string"),
        ({"id": "mine"}, "id", "request_id"),
        ({"lane": "fast"}, "lane", "interactive, normal, bulk"),
        ({"tenant": "a b"}, "tenant", "a b"),
        ({"encoding": "xml"}, "encoding", "json, mp"),
        ({"via": "post"}, "via", "move, xadd"),
        ({"durability": "tape"}, "durability", "memory, fsync"),
        ({"n": 129}, "n", "128"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_name_before_it_is_sent(
    given: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        prepared(**given)
    assert caught.value.field == field


def test_tuples_are_taken_where_the_schema_asks_for_lists() -> None:
    submission = prepared((1, 2, 3), stop=("a", "b"))
    assert submission.fields["prompt"] == [1, 2, 3]
    assert submission.fields["stop"] == ["a", "b"]


@pytest.mark.parametrize("prompt", [range(1, 4), numpy.array([1, 2, 3], numpy.int32), array("i", [1, 2, 3])])
def test_any_sequence_of_integers_is_a_prompt(prompt: Any) -> None:
    assert prepared(prompt).fields["prompt"] == [1, 2, 3]
    assert {type(token) for token in prepared(prompt).fields["prompt"]} == {int}


@pytest.mark.parametrize("seconds", [-1, -0.001, math.nan, -math.inf])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidRequestError, match=r"timeout_s: .* must be at least 0") as caught:
        checked_seconds(seconds)
    assert caught.value.field == "timeout_s"
    assert [checked_seconds(s) for s in (0, 1.5, math.inf)] == [0, 1.5, math.inf]


@given(
    st.one_of(
        st.text(min_size=1, max_size=20),
        st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9),
    ),
    st.sampled_from(["json", "mp"]),
)
def test_what_a_scheduler_decodes_is_what_was_asked(prompt: str | list[int], encoding: Any) -> None:
    submission = prepared(prompt, encoding=encoding, temperature=0.5)
    request = Request.parse(decode_body(submission.body, encoding))
    assert request.prompt == prompt
    assert request.temperature == 0.5
    assert request.seed == submission.fields["seed"]


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        ({"prompt": [1, 2, 3], "max_tokens": 10}, 13),
        ({"prompt": "x" * 40, "max_tokens": 10}, 21),
        ({"prompt": [1]}, 41),
        ({"prompt": [1], "max_tokens": 10_000}, 100),
        ({"messages": [{"role": "user", "content": "x" * 8}], "max_tokens": 10}, 17),
    ],
)
def test_the_cost_is_near_prompt_plus_output_and_never_beyond_a_context(fields: dict[str, Any], cost: int) -> None:
    assert estimate_cost_tokens(Request.parse(fields), SETTINGS) == cost


def test_the_results_life_is_the_requests_or_the_default_and_has_a_limit() -> None:
    settings = Settings(queue="test", result_ttl_ms=1_000, max_result_ttl_ms=5_000)
    assert prepared(settings=settings).ttl_ms == 1_000
    assert prepared(settings=settings, ttl_ms=2_000).ttl_ms == 2_000
    assert prepared(settings=settings, ttl_ms=9_000).ttl_ms == 5_000


def test_a_request_that_is_sent_again_keeps_its_deadline_and_none_is_sent_behind_it() -> None:
    submission = prepared(deadline_ms=5_000)
    later = submission.again(submission.made_s + 2)
    assert later.fields["deadline_ms"] == 3_000
    assert later.again(submission.made_s + 3).fields["deadline_ms"] == 2_000
    with pytest.raises(ExpiredError):
        submission.again(submission.made_s + 5)


def test_a_known_id_is_an_earlier_requests_only_if_the_caller_chose_it() -> None:
    known = Submitted("known", "running")
    assert prepared(request_id="mine").belongs_to_another(known)
    assert not prepared().belongs_to_another(known)
    assert not prepared(request_id="mine").belongs_to_another(Submitted("ok", "1-0"))


def test_a_full_backlog_is_an_error_that_names_the_request() -> None:
    submission = prepared()
    with pytest.raises(OverloadedError, match="77 tokens wait") as caught:
        submission.accepted(Submitted("overloaded", "77"))
    assert caught.value.request_id == submission.request_id
