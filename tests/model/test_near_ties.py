"""What counts as a near tie, and that nothing else does."""

import copy
import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from headrace.job import SamplingParams
from headrace.kernels.reference_sampling import uniform
from headrace.testing.churn import KINDS as REQUESTS
from headrace.testing.near_ties import NearTies, assert_near_choice
from headrace.testing.plain_params import plain_params
from headrace.testing.sampling import sample
from headrace.testing.tiny_models import KINDS, VOCAB, make_oracle
from headrace.workers.channel import Add
from headrace.workers.engine.sequence import Sequence

PROMPT = tuple(range(5, 25))
WITHIN, BEYOND = 2e-6, 2e-4


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return make_oracle(KINDS["qwen3 tied"], tmp_path_factory.mktemp("model"))


def choices(logits: Tensor, params: SamplingParams, position: int = 0) -> set[int]:
    """Tokens that pass as what a row chooses."""
    row = Sequence(0, (1,), (1,) * position, params, frozenset())
    found = set()
    for token_id in range(len(logits)):
        try:
            assert_near_choice(row, logits, token_id)
        except AssertionError:
            continue
        found.add(token_id)
    return found


def greedy(exact: PreTrainedModel, params: SamplingParams, output: list[int]) -> list[int]:
    """Go on behind ``output`` with the most probable tokens."""
    biases = torch.zeros(VOCAB, dtype=torch.float64)
    for token_id, bias in params.logit_bias:
        biases[token_id] = bias
    while len(output) < params.max_tokens:
        with torch.inference_mode():
            logits = exact(torch.tensor([[*PROMPT, *output]])).logits[0, -1]
        output = [*output, int((logits + biases).argmax())]
    return output


def parted(oracle: PreTrainedModel, gap: float) -> tuple[Add, list[int], list[int]]:
    """A row whose first two tokens are as good as each other up to ``gap``, and what it may get."""
    exact = copy.deepcopy(oracle).double()
    with torch.inference_mode():
        values, ids = exact(torch.tensor([PROMPT])).logits[0, -1].topk(2)
    bias = float(values[0] - values[1]) - gap
    params = plain_params(6, logit_bias=((int(ids[1]), bias),))
    return Add(7, PROMPT, (), params), greedy(exact, params, []), greedy(exact, params, [int(ids[1])])


def test_a_row_may_part_at_a_near_tie_and_is_counted(oracle: PreTrainedModel) -> None:
    add, ours, theirs = parted(oracle, WITHIN)
    assert ours[0] != theirs[0]
    ties = NearTies(oracle)
    ties.assert_same(add, ours, ours)
    assert ties.num_parted == 0
    ties.assert_same(add, theirs, ours)
    ties.assert_same(add, theirs[:3], ours, dropped=True)
    ties.assert_same(add, ours[:3], ours, dropped=True)
    assert ties.num_parted == 2


def test_a_row_that_parts_where_there_is_no_tie_is_wrong(oracle: PreTrainedModel) -> None:
    add, ours, theirs = parted(oracle, BEYOND)
    for found, alone in ((theirs, ours), (ours, theirs)):
        with pytest.raises(AssertionError, match="row 7 has token"):
            NearTies(oracle).assert_same(add, found, alone)


@pytest.mark.parametrize("index", range(6))
def test_one_planted_token_is_found_wherever_it_stands(oracle: PreTrainedModel, index: int) -> None:
    add, ours, theirs = parted(oracle, WITHIN)
    for tokens in (ours, theirs):
        planted = [*tokens]
        planted[index] = (tokens[index] + 1) % VOCAB
        with pytest.raises(AssertionError, match="row 7 has token"):
            NearTies(oracle).assert_same(add, planted, ours)


def test_a_row_with_too_few_tokens_is_wrong_whether_it_parted_or_not(oracle: PreTrainedModel) -> None:
    add, ours, theirs = parted(oracle, WITHIN)
    for found in (ours[:4], theirs[:4]):
        with pytest.raises(AssertionError, match=r"instead of|ended by nothing"):
            NearTies(oracle).assert_same(add, found, ours)


@pytest.mark.parametrize(("num_rows", "most"), [(1, 1), (500, 1), (1000, 1), (1001, 2), (5000, 5)])
def test_more_ties_than_rounding_brings_are_wrong(oracle: PreTrainedModel, num_rows: int, most: int) -> None:
    ties = NearTies(oracle)
    ties.num_parted = most
    ties.assert_few(num_rows)
    ties.num_parted += 1
    with pytest.raises(AssertionError, match="rounding is rarer"):
        ties.assert_few(num_rows)


@pytest.mark.parametrize(("gap", "passes"), [(WITHIN, {0, 2}), (-WITHIN, {0, 2}), (BEYOND, {0}), (-BEYOND, {2})])
def test_greedy_rows_may_take_either_of_two_equal_tokens(gap: float, passes: set[int]) -> None:
    logits = torch.tensor([1.0, -1.0, 1.0 - gap, 0.5], dtype=torch.float64)
    assert choices(logits, plain_params(4)) == passes


@pytest.mark.parametrize("distance", [WITHIN, -WITHIN, BEYOND, -BEYOND])
@pytest.mark.parametrize("temperature", [0.8, 1.5])
def test_a_number_near_the_border_of_two_tokens_may_give_either(distance: float, temperature: float) -> None:
    number = uniform(9, 3)
    first = number / 2, number / 2 - distance
    shares = torch.tensor([*first, (1 - sum(first)) / 2, (1 - sum(first)) / 2], dtype=torch.float64)
    logits = shares.log() * float(torch.tensor(temperature))
    exact = 2 if distance > 0 else 1
    found = choices(logits, plain_params(4, temperature=temperature, seed=9), 3)
    assert found == ({1, 2} if abs(distance) == WITHIN else {exact})


@pytest.mark.parametrize(("gap", "ambiguous"), [(WITHIN, True), (BEYOND, False)])
@pytest.mark.parametrize(
    ("fields", "shares"),
    [
        ({"top_k": 2}, (0.3, 0.5, 0.1, 0.1)),
        ({"top_p": 0.8}, (0.3, 0.5, 0.1, 0.1)),
        ({"min_p": 0.5}, (0.25, 0.5, 0.15, 0.1)),
    ],
    ids=str,
)
def test_what_a_filter_keeps_may_differ_by_the_token_on_its_border(
    fields: dict[str, Any], shares: tuple[float, ...], gap: float, ambiguous: bool
) -> None:
    """Some seed tells the two apart; both tokens pass for it only where the filter's end is a near tie."""
    values = torch.tensor(shares, dtype=torch.float64)
    if "top_k" in fields:
        values[2] = values[0] - gap
    else:
        values[0] += gap
    seen = [choices(values.log(), plain_params(4, temperature=1.0, seed=seed, **fields)) for seed in range(60)]
    assert any(len(found) > 1 for found in seen) == ambiguous
    assert all(found for found in seen)


@pytest.mark.parametrize("fields", [*REQUESTS, {"temperature": 0.0, "repetition_penalty": 1.3}], ids=str)
def test_what_the_sampler_takes_passes_and_every_other_token_does_not(fields: dict[str, Any]) -> None:
    rng, generator = random.Random(0), torch.Generator().manual_seed(5)
    for _ in range(12):
        params = plain_params(30, **fields)
        params = replace(params, seed=rng.randrange(1 << 63))
        output = tuple(rng.randrange(60) for _ in range(rng.randrange(8)))
        row = Sequence(0, (5, 12, 7), output, params, frozenset({2}))
        logits = torch.randn(60, generator=generator) * 2
        (token_id,) = sample(logits[None].clone(), [row]).token_ids
        assert_near_choice(row, logits.double(), token_id)
        for other in {rng.randrange(60) for _ in range(6)} - {token_id}:
            with pytest.raises(AssertionError, match=f"has token {other} behind {len(output)} tokens"):
                assert_near_choice(row, logits.double(), other)


def test_probabilities_that_are_nought_do_not_pass() -> None:
    logits = torch.tensor([0.0, -math.inf, 0.0], dtype=torch.float64)
    for seed in range(50):
        assert 1 not in choices(logits, plain_params(4, temperature=1.0, seed=seed))
