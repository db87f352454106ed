"""Sampling against transformers' logits processors: the same tokens survive, with the same probabilities."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from headrace.job import SamplingParams
from headrace.kernels.reference_sampling import uniform
from headrace.testing.sampling import sample
from headrace.workers.engine.row_rules import RowRules
from headrace.workers.engine.sequence import Sequence

NUM_DRAWS = 40
PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.just(NUM_DRAWS + 1),
    min_tokens=st.just(0),
    temperature=st.sampled_from([0.2, 0.7, 1.0, 1.5, 4.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 255, 256, 257, 900, 5000]),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 0.95, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.001, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 2**63 - 1),
    stop=st.just(()),
    stop_token_ids=st.just(()),
    ignore_eos=st.just(True),
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def processors(params: SamplingParams) -> Iterator[LogitsProcessor]:
    """In the order in which transformers' generation applies them."""
    yield TemperatureLogitsWarper(params.temperature)
    if params.top_k:
        yield TopKLogitsWarper(params.top_k)
    if params.top_p < 1:
        yield TopPLogitsWarper(params.top_p)
    if params.min_p:
        yield MinPLogitsWarper(params.min_p)


@settings(max_examples=250)
@given(
    params=PARAMS,
    vocab_size=st.sampled_from([3, 200, 256, 1500]),
    spread=st.sampled_from([0.5, 3.0, 10.0]),
    seed=st.integers(0, 1000),
)
def test_draws_invert_the_distribution_that_transformers_leaves(
    params: SamplingParams, vocab_size: int, spread: float, seed: int
) -> None:
    logits = torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread
    filtered = logits.clone()
    for processor in processors(params):
        filtered = processor(torch.empty(1, 0, dtype=torch.int64), filtered)
    probabilities = filtered[0].double().softmax(dim=-1)
    cumulative = probabilities.cumsum(0)
    rows = [Sequence(0, (1,), (1,) * position, params, frozenset()) for position in range(NUM_DRAWS)]
    drawn = sample(logits.repeat(NUM_DRAWS, 1), rows).token_ids
    for position, token_id in enumerate(drawn):
        number = uniform(params.seed, position)
        # The token whose share of the cumulative distribution, by id, holds the number, but for rounding in fp32.
        assert probabilities[token_id] > 0, "a token that transformers filters out"
        assert cumulative[token_id] - probabilities[token_id] - 1e-5 <= number < cumulative[token_id] + 1e-5


def words(vocab_size: int) -> st.SearchStrategy[list[list[int]]]:
    return st.lists(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=3), min_size=1, max_size=8)


@settings(max_examples=150)
@given(
    token_ids=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    num_prompt=st.integers(1, 12),
    penalty=st.sampled_from([1.0, 1.2, 0.7, 3.0]),
    bad_words=words(6),
    bias=st.dictionaries(st.integers(0, 9), st.floats(-5, 5, width=16), max_size=4),
    min_tokens=st.integers(0, 8),
    seed=st.integers(0, 1000),
)
def test_rules_leave_the_logits_that_transformers_leaves(
    token_ids: list[int],
    num_prompt: int,
    penalty: float,
    bad_words: list[list[int]],
    bias: dict[int, float],
    min_tokens: int,
    seed: int,
) -> None:
    num_prompt = min(num_prompt, len(token_ids))
    prompt, output = tuple(token_ids[:num_prompt]), tuple(token_ids[num_prompt:])
    params = SamplingParams(
        max_tokens=20, min_tokens=min_tokens, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, stop=(),
        stop_token_ids=(7,), ignore_eos=True, repetition_penalty=penalty, logit_bias=tuple(bias.items()),
        bad_words=tuple(tuple(word) for word in bad_words),
    )  # fmt: skip
    row = Sequence(0, prompt, output, params, frozenset())
    ours = torch.randn(10, generator=torch.Generator().manual_seed(seed))
    theirs, ids = ours[None].clone(), torch.tensor([token_ids])
    if bias:
        theirs = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])(ids, theirs)
    if penalty != 1:
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids, theirs)
    theirs = NoBadWordsLogitsProcessor(bad_words)(ids, theirs)
    theirs = MinNewTokensLengthLogitsProcessor(num_prompt, min_tokens, [7], device="cpu")(ids, theirs)
    rules = RowRules.of(row, 10)
    assert rules is not None
    rules.apply(ours, row)
    torch.testing.assert_close(ours, theirs[0])
