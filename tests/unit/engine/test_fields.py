"""Every field that shapes a row does so through the whole engine, alone or in company, at once or resumed."""

from collections.abc import Callable
from typing import Any

import pytest

from headrace.job import SamplingParams
from headrace.workers.channel import Add
from headrace.workers.engine.engine import Engine

MakeEngine = Callable[..., Engine]
Params = Callable[..., SamplingParams]
PROMPT = (5, 11, 60, 33, 8)
DRAWN: dict[str, Any] = {"temperature": 3.0, "seed": 4}
#: By the field: what the row is like, and the field's own value.
FIELDS: dict[str, tuple[dict[str, Any], Any]] = {
    "max_tokens": ({}, 5),
    "temperature": ({"seed": 4}, 3.0),
    "seed": (DRAWN, 5),
    "top_k": (DRAWN, 2),
    "top_p": (DRAWN, 0.2),
    "min_p": (DRAWN, 0.6),
    "repetition_penalty": ({}, 4.0),
    "presence_penalty": (DRAWN, 2.0),
    "frequency_penalty": (DRAWN, 2.0),
    "logit_bias": ({}, ((17, 100.0),)),
}


def run(engine: Engine, *adds: Add) -> dict[int, tuple[list[int], str]]:
    for add in adds:
        engine.add(add)
    found: dict[int, tuple[list[int], str]] = {add.row: ([], "") for add in adds}
    while engine.has_rows:
        for row, token_id, finish in engine.step().tokens:
            found[row] = ([*found[row][0], token_id], finish)
    return found


@pytest.mark.parametrize("field", list(FIELDS))
def test_a_field_shapes_its_row_alone_in_company_and_resumed(
    make_engine: MakeEngine, params: Params, field: str
) -> None:
    base, value = FIELDS[field]
    without = Add(1, PROMPT, (), params(**({"max_tokens": 24} | base)))
    with_it = Add(2, PROMPT, (), params(**({"max_tokens": 24} | base | {field: value})))
    alone = run(make_engine(), with_it)[2]
    together = run(make_engine(), without, with_it)
    assert together[2] == alone, "company changes nothing"
    assert together[1] != alone, "the field changes something"
    for num_done in (1, 4):
        resumed = Add(2, PROMPT, tuple(alone[0][:num_done]), with_it.params)
        assert run(make_engine(), resumed)[2] == (alone[0][num_done:], alone[1])


@pytest.fixture
def greedy(make_engine: MakeEngine, params: Params) -> list[int]:
    """What the row says if nobody interferes."""
    return run(make_engine(), Add(1, PROMPT, (), params(max_tokens=24)))[1][0]


def test_bad_words_of_one_token_and_of_two_are_never_said(
    make_engine: MakeEngine, params: Params, greedy: list[int]
) -> None:
    one, two = (greedy[0],), (PROMPT[-1], greedy[0])
    for word in (one, two, tuple(greedy[3:5])):
        said = run(make_engine(), Add(1, PROMPT, (), params(max_tokens=24, bad_words=(word,))))[1][0]
        whole = [*PROMPT, *said]
        assert all(tuple(whole[i : i + len(word)]) != word for i in range(len(PROMPT) - 1, len(whole)))
        assert said != greedy


def test_a_stop_id_ends_the_row_but_not_before_min_tokens(
    make_engine: MakeEngine, params: Params, greedy: list[int]
) -> None:
    stop = greedy[2]
    ended = run(make_engine(), Add(1, PROMPT, (), params(max_tokens=24, stop_token_ids=(stop,))))[1]
    assert ended == (greedy[: greedy.index(stop) + 1], "stop")
    late = run(make_engine(), Add(1, PROMPT, (), params(max_tokens=24, stop_token_ids=(stop,), min_tokens=12)))[1]
    assert stop not in late[0][:12]
    assert len(late[0]) >= 12


def test_the_models_own_end_ends_the_row_unless_it_is_ignored(make_engine: MakeEngine, params: Params) -> None:
    eager = {"logit_bias": ((2, 100.0),), "max_tokens": 6}
    assert run(make_engine(), Add(1, PROMPT, (), params(**eager, ignore_eos=False)))[1] == ([2], "stop")
    assert run(make_engine(), Add(1, PROMPT, (), params(**eager, ignore_eos=True)))[1] == ([2] * 6, "length")


def test_logprobs_change_nothing_but_what_is_told(make_engine: MakeEngine, params: Params, greedy: list[int]) -> None:
    assert run(make_engine(), Add(1, PROMPT, (), params(max_tokens=24, logprobs=3)))[1][0] == greedy
