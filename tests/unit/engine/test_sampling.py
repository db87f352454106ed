import math
from collections import Counter
from collections.abc import Callable

import torch

from headrace.job import SamplingParams
from headrace.testing.sampling import sample
from headrace.workers.engine.sequence import Sequence

Params = Callable[..., SamplingParams]
VOCAB = 1000


def row(params: SamplingParams, num_output: int = 0, eos_ids: frozenset[int] = frozenset()) -> Sequence:
    return Sequence(0, (1,), (1,) * num_output, params, eos_ids)


def logits(*seeds: int, spread: float = 3.0) -> torch.Tensor:
    return torch.stack([torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * spread for seed in seeds])


def test_greedy_takes_the_most_probable_token(params: Params) -> None:
    values = logits(1, 2)
    expected = values.argmax(dim=-1).tolist()
    assert sample(values, [row(params()), row(params())]).token_ids == expected


def test_a_draw_depends_on_seed_and_position_and_not_on_the_other_rows(params: Params) -> None:
    kinds = [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 7},
        {"temperature": 1.0, "min_p": 0.05},
        {"temperature": 0.0},
        {"temperature": 5.0, "top_p": 0.999},
    ]
    rows = [row(params(seed=seed, **kind), num_output=seed) for seed, kind in enumerate(kinds)]
    together = sample(logits(*range(6)), rows).token_ids
    for order in ([5, 4, 3, 2, 1, 0], [2, 0, 5]):
        assert sample(logits(*order), [rows[i] for i in order]).token_ids == [together[i] for i in order]
    alone = [sample(logits(i), [rows[i]]).token_ids[0] for i in range(6)]
    assert alone == together


def test_draws_change_with_the_seed_and_with_the_position(params: Params) -> None:
    by_seed = {sample(logits(0), [row(params(temperature=2.0, seed=seed))]).token_ids[0] for seed in range(20)}
    by_position = {sample(logits(0), [row(params(temperature=2.0), n)]).token_ids[0] for n in range(20)}
    assert len(by_seed) > 10
    assert len(by_position) > 10


def test_draws_follow_the_distribution(params: Params) -> None:
    probabilities = [0.5, 0.25, 0.15, 0.1]
    values = torch.tensor([[math.log(p) for p in probabilities]]).repeat(4000, 1)
    rows = [row(params(temperature=1.0, seed=5), num_output=n) for n in range(4000)]
    counts = Counter(sample(values, rows).token_ids)
    for token, p in enumerate(probabilities):
        assert abs(counts[token] - 4000 * p) < 5 * math.sqrt(4000 * p * (1 - p))


def test_a_vanishing_temperature_is_greedy(params: Params) -> None:
    values = logits(3)
    best = int(values.argmax())
    for temperature in (1e-3, 1e-30, 1e-60):
        assert sample(values.clone(), [row(params(temperature=temperature, seed=9))]).token_ids == [best]


def test_stop_ids_have_no_chance_before_min_tokens(params: Params) -> None:
    best, second = logits(4).topk(2).indices[0].tolist()
    early = params(min_tokens=3, stop_token_ids=(best, VOCAB + 5))
    assert sample(logits(4), [row(early, num_output=2)]).token_ids == [second]
    assert sample(logits(4), [row(early, num_output=3)]).token_ids == [best]
    eos = frozenset({best})
    assert sample(logits(4), [row(params(min_tokens=3, ignore_eos=False), 2, eos)]).token_ids == [second]


def test_logits_that_are_not_numbers_spoil_their_own_row_only(params: Params) -> None:
    values = logits(1, 2, 3, 4)
    expected = values.argmax(dim=-1).tolist()
    values[1, 17] = math.nan
    values[2] = -math.inf
    for kind in ({"temperature": 0.0}, {"temperature": 1e-30}):
        sampled = sample(values.clone(), [row(params(**kind)) for _ in range(4)])
        assert sampled.valid == [True, False, False, True]
        assert [sampled.token_ids[0], sampled.token_ids[3]] == [expected[0], expected[3]]
