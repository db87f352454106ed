"""Logprobs are of the model's own distribution, whatever the request makes of it."""

from collections.abc import Callable

import pytest
import torch

from headrace.job import SamplingParams
from headrace.testing.sampling import sample
from headrace.workers.channel import Add
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.sequence import Sequence

Params = Callable[..., SamplingParams]
VOCAB = 300


def logits() -> torch.Tensor:
    return torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(8)) * 3


@pytest.mark.parametrize(
    "kind",
    [{}, {"temperature": 0.7, "top_p": 0.5, "seed": 3}, {"repetition_penalty": 1.5}, {"logit_bias": ((5, 60.0),)},
     {"bad_words": ((9,),)}],
)  # fmt: skip
def test_they_are_the_log_softmax_of_the_logits_before_anything_changes_them(
    params: Params, kind: dict[str, object]
) -> None:
    rows = [
        Sequence(i, (5, 6), (), params(logprobs=count, **kind), frozenset()) for i, count in enumerate((3, None, 0))
    ]
    expected = logits().double().log_softmax(-1)
    sampled = sample(logits(), rows)
    assert set(sampled.logprobs) == {0, 2}
    for index, told in sampled.logprobs.items():
        assert told.logprob == pytest.approx(float(expected[index, sampled.token_ids[index]]), abs=1e-5)
    values, ids = expected[0].topk(3)
    assert [token_id for token_id, _ in sampled.logprobs[0].top] == ids.tolist()
    assert [logprob for _, logprob in sampled.logprobs[0].top] == pytest.approx(values.tolist(), abs=1e-5)
    assert sampled.logprobs[2].top == ()


def test_a_token_that_is_all_but_impossible_has_a_number_that_json_can_spell(params: Params) -> None:
    values = torch.full((1, 4), -1e6)
    values[0, 2] = 0.0
    row = Sequence(0, (1,), (), params(logprobs=20, logit_bias=()), frozenset())
    told = sample(values, [row]).logprobs[0]
    assert told.logprob == 0.0
    assert [logprob for _, logprob in told.top] == [0.0, -9999.0, -9999.0, -9999.0]


def test_an_engine_tells_them_with_the_tokens(make_engine: Callable[..., Engine], params: Params) -> None:
    engine = make_engine()
    engine.add(Add(1, (5, 6), (), params(logprobs=2)))
    engine.add(Add(2, (5, 6), (), params()))
    tokens = engine.step()
    ((row, logprob, top),) = tokens.logprobs
    assert (row, top[0]) == (1, (dict((r, t) for r, t, _ in tokens.tokens)[1], logprob))


def test_equal_tokens_are_told_by_id(params: Params) -> None:
    equal = torch.zeros(1, VOCAB)
    equal[0, [250, 17, 99, 4]] = 2.0
    told = sample(equal, [Sequence(1, (5, 6), (), params(logprobs=6), frozenset())]).logprobs[0]
    assert [token_id for token_id, _ in told.top] == [4, 17, 99, 250, 0, 1]
