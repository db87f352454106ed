"""Every field at once through a whole fleet whose engine and courier are killed: tokens, logprobs and echo stay."""

from typing import Any

import pytest

from headrace.producer import Client
from headrace.producer.outcome import Result
from headrace.testing.fleet import Fleet
from headrace.wire import Echo

PROMPT = "The three laws of thermodynamics are these: first,"
FIELDS: dict[str, Any] = {
    "max_tokens": 48, "ignore_eos": True, "temperature": 0.9, "top_p": 0.95, "seed": 11, "n": 3, "echo": True,
    "logprobs": 2, "repetition_penalty": 1.2, "presence_penalty": 0.4, "frequency_penalty": 0.2,
    "bad_words": ["energy", "the"], "logit_bias": {"28": -2.0},
}  # fmt: skip


def facts(result: Result) -> list[tuple[tuple[int, ...], str, Echo | None]]:
    return [(choice.ids, choice.text, choice.echo) for choice in result.choices]


@pytest.fixture(scope="module")
def undisturbed(fleet: Fleet) -> Result:
    with Client(fleet.settings) as client:
        return client.submit(PROMPT, **FIELDS).result(timeout_s=120)


def test_several_results_have_all_that_was_asked_for(fleet: Fleet, undisturbed: Result) -> None:
    assert len({choice.ids for choice in undisturbed.choices}) == 3
    for choice in undisturbed.choices:
        assert choice.echo is not None
        assert (choice.echo.text, len(choice.ids), len(choice.logprobs)) == (PROMPT, 48, 48)
        assert choice.cumulative_logprob == sum(token.logprob for token in choice.logprobs)
        assert all(len(token.top) == 2 and token.logprob <= token.top[0][1] <= 0 for token in choice.logprobs)
        assert " the " not in choice.text
        assert " energy " not in choice.text
    assert not any(fleet.broker.load().values())


@pytest.mark.parametrize("part", ["engine", "courier"])
def test_a_kill_changes_none_of_it(fleet: Fleet, undisturbed: Result, part: Any) -> None:
    fleet.wait_ready()
    with Client(fleet.settings) as client:
        handle = client.submit(PROMPT, **FIELDS)
        pieces = []
        for piece in handle.stream(timeout_s=120):
            pieces.append(piece)
            if len(pieces) == 6:
                fleet.kill_part(part)
        result = Result.of(handle.id, pieces)
    assert facts(result) == facts(undisturbed)
    for ours, theirs in zip(result.choices, undisturbed.choices, strict=True):
        assert ours.cumulative_logprob == pytest.approx(theirs.cumulative_logprob, abs=1e-3)
        assert len(ours.logprobs) == len(theirs.logprobs)
    assert not any(fleet.broker.load().values())
