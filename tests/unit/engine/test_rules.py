"""Biases, penalties and bad words against their definitions; each test fails where the field is ignored."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from headrace.job import SamplingParams
from headrace.testing.sampling import computed, sample
from headrace.workers.engine.forbidden import BadWords
from headrace.workers.engine.penalties import Penalties
from headrace.workers.engine.row_rules import RowRules
from headrace.workers.engine.sampling import Sampler
from headrace.workers.engine.sequence import Sequence

Params = Callable[..., SamplingParams]
VOCAB = 50


def random_logits(seed: int) -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def penalised(logits: torch.Tensor, prompt: list[int], output: list[int], params: SamplingParams) -> torch.Tensor:
    """The definition: OpenAI's for presence and frequency, of CTRL (Keskar et al., 2019) for repetition."""
    values, counts = logits.tolist(), Counter(output)
    for token in set(prompt) | set(output):
        factor = params.repetition_penalty
        values[token] = values[token] / factor if values[token] > 0 else values[token] * factor
    for token, count in counts.items():
        values[token] -= count * params.frequency_penalty + params.presence_penalty
    return torch.tensor(values)


KINDS = [
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"presence_penalty": 1.5},
    {"presence_penalty": -2.0},
    {"frequency_penalty": 0.75},
    {"repetition_penalty": 1.3, "presence_penalty": -0.5, "frequency_penalty": 0.25},
]


@pytest.mark.parametrize("kind", KINDS)
def test_penalties_follow_their_definition_token_by_token_and_resumed(params: Params, kind: dict[str, float]) -> None:
    chance = random.Random(1)
    prompt, given = [chance.randrange(VOCAB) for _ in range(9)], params(max_tokens=40, **kind)
    unbroken = Sequence(0, tuple(prompt), (), given, frozenset())
    rules = RowRules.of(unbroken, VOCAB)
    assert rules is not None
    output: list[int] = []
    for step in range(30):
        mine, resumed = random_logits(step), random_logits(step)
        rules.apply(mine, unbroken)
        torch.testing.assert_close(mine, penalised(random_logits(step), prompt, output, given))
        other = Sequence(0, tuple(prompt), tuple(output), given, frozenset())
        fresh = RowRules.of(other, VOCAB)
        assert fresh is not None
        fresh.apply(resumed, other)
        assert torch.equal(mine, resumed), "a resumed row is penalised to the bit as an unbroken one"
        output.append(chance.randrange(12))
        unbroken.token_ids.append(output[-1])


def test_penalties_applied_twice_to_one_step_count_once(params: Params) -> None:
    row = Sequence(0, (1, 2), (3, 3), params(frequency_penalty=1.0), frozenset())
    rules = RowRules.of(row, VOCAB)
    assert rules is not None
    first, second = random_logits(0), random_logits(0)
    for values in (first, second):
        rules.apply(values, row)
    assert torch.equal(first, second)


def test_presence_and_frequency_leave_the_prompt_alone(params: Params) -> None:
    row = Sequence(0, (5, 6), (), params(presence_penalty=2.0, frequency_penalty=2.0), frozenset())
    penalties, values = Penalties(row, VOCAB), random_logits(0)
    penalties.apply(values, row)
    assert torch.equal(values, random_logits(0))


def test_a_bias_is_added_before_the_penalties(params: Params) -> None:
    row = Sequence(0, (5,), (), params(logit_bias=((5, 4.0), (6, -100.0)), repetition_penalty=2.0), frozenset())
    rules, values = RowRules.of(row, VOCAB), torch.zeros(VOCAB)
    assert rules is not None
    rules.apply(values, row)
    assert values[5:8].tolist() == [2.0, -100.0, 0.0]


def test_a_bias_decides(params: Params) -> None:
    values = random_logits(3)
    best, second = values.topk(2).indices.tolist()
    row = Sequence(0, (1,), (), params(logit_bias=((best, -50.0),)), frozenset())
    assert sample(values[None].clone(), [row]).token_ids == [second]


def test_bad_words_are_never_completed_across_the_prompts_end_or_within_themselves() -> None:
    words = BadWords([(7,), (1, 2), (1, 1, 3), (4, 1, 2, 5)])
    assert words.forbidden_behind([9]) == [7]
    assert words.forbidden_behind([9, 1]) == [7, 2]
    assert words.forbidden_behind([1, 1]) == [7, 2, 3]
    assert words.forbidden_behind([4, 1, 2]) == [7, 5]
    assert words.forbidden_behind([1, 2]) == [7]


def test_a_row_without_rules_has_none_and_is_not_touched(params: Params) -> None:
    assert RowRules.of(Sequence(0, (1,), (), params(stop_token_ids=(3,)), frozenset()), VOCAB) is None
    plain = Sequence(0, (1,), (), params(), frozenset())
    other = Sequence(1, (1,), (), params(logit_bias=((0, 90.0),)), frozenset())
    values = torch.stack([random_logits(1), random_logits(1)])
    assert sample(values, [plain, other]).token_ids == [int(random_logits(1).argmax()), 0]
    assert torch.equal(values[0], random_logits(1))


def test_a_row_whose_every_token_is_forbidden_fails_alone(params: Params) -> None:
    hopeless = params(bad_words=tuple((token,) for token in range(VOCAB)), temperature=1.0)
    rows = [Sequence(0, (1,), (), hopeless, frozenset()), Sequence(1, (1,), (), params(), frozenset())]
    assert sample(torch.stack([random_logits(1), random_logits(2)]), rows).valid == [False, True]


def test_a_samplers_memory_of_a_row_goes_with_the_row(params: Params) -> None:
    rows = [Sequence(index, (1,), (), params(frequency_penalty=1.0), frozenset()) for index in range(3)]
    sampler = Sampler(computed(rows))
    sampler.sample(torch.stack([random_logits(1)] * 3), rows)
    assert len(sampler._rules) == 3
    del rows[1:]
    sampler.sample(random_logits(1)[None], rows)
    assert len(sampler._rules) == 1
