"""However a token is found, it is the one that the definition names, to the bit."""

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.workers.engine import drawing
from headrace.workers.engine.drawing import ONE, Drawer, Filters, filter_row

LEAST = torch.finfo(torch.float32).tiny


def defined(shifted: torch.Tensor, temperature: float, uniform: float, top_k: int, top_p: float, min_p: float) -> int:
    """The definition, by sorting all of a row: integers all the way, so that no sum is rounded."""
    scaled = shifted / torch.tensor(temperature, dtype=torch.float32)
    masses = [int(mass) for mass in (scaled.exp() * ONE).floor().tolist()]
    values = scaled.tolist()
    order = sorted(range(len(masses)), key=lambda token_id: (-values[token_id], token_id))[:top_k]
    base, kept = sum(masses[token_id] for token_id in order), 0
    left: list[int] = []
    for token_id in order:
        if kept >= top_p * base or masses[token_id] < min_p * ONE:
            break
        kept += masses[token_id]
        left.append(token_id)
    target, cumulative = min(int(uniform * kept), kept - 1), 0
    for token_id in sorted(left):
        cumulative += masses[token_id]
        if cumulative > target:
            return token_id
    raise AssertionError("nothing is kept")


def column(value: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor([[value]], dtype=dtype)


@settings(max_examples=300)
@given(
    vocab_size=st.sampled_from([1, 3, 63, 64, 65, 1000, 5003]),
    spread=st.sampled_from([0.0, 1e-6, 0.1, 1.0, 3.0, 12.0, 200.0]),
    step=st.sampled_from([0.0, 0.5]),
    temperature=st.sampled_from([1e-60, 0.3, 0.8, 1.0, 5.0]),
    top_k=st.sampled_from([1, 2, 50, 64, 65, 700, 10_000]),
    top_p=st.sampled_from([1e-9, 0.3, 0.9, 0.95, 0.9999, 1.0]),
    min_p=st.sampled_from([0.0, 1e-6, 0.01, 0.5, 1.0]),
    uniform=st.floats(0, 1, exclude_max=True),
    forbidden=st.booleans(),
    seed=st.integers(0, 10_000),
)
@example(5003, 0.0, 0.0, 1.0, 10_000, 1.0, 0.0, 1 - 2**-53, False, 0)
def test_both_ways_find_the_token_of_the_definition(
    vocab_size: int,
    spread: float,
    step: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    uniform: float,
    forbidden: bool,
    seed: int,
) -> None:
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * spread
    if step:  # ties, as low precisions have them
        logits = (logits / step).round() * step
    if forbidden:
        logits[1::3] = -math.inf
    shifted = logits - logits.max()
    top_k, temperature = min(top_k, vocab_size), max(temperature, LEAST)
    expected = defined(shifted, temperature, uniform, top_k, top_p, min_p)
    filters = Filters(
        column(max(temperature, LEAST), torch.float32), column(top_k, torch.int64), column(top_p), column(min_p)
    )
    assert Drawer().draw(shifted[None].clone(), filters, column(uniform)).tolist() == [expected]
    scaled = shifted / torch.tensor(temperature, dtype=torch.float32)
    mass = (scaled.exp() * ONE).floor()
    filter_row(scaled, mass, top_k=top_k, top_p=top_p, min_p=min_p)
    kept = [int(one) for one in mass.tolist()]
    target = min(int(uniform * sum(kept)), sum(kept) - 1)
    assert next(token_id for token_id, sum_to in enumerate(accumulate(kept)) if sum_to > target) == expected


def all_of(num_rows: int, vocab_size: int, top_p: float = 1.0) -> Filters:
    ones = torch.ones(num_rows, 1, dtype=torch.float64)
    return Filters(ones.float(), (ones * vocab_size).to(torch.int64), ones * top_p, ones * 0.0)


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_numbers_that_are_spread_evenly_draw_each_kept_token_as_often_as_its_share_says(top_p: float) -> None:
    num_draws = 5000
    probabilities = torch.tensor([0.3, 0.0, 0.1, 0.25, 0.05, 0.3], dtype=torch.float64)
    shifted = (probabilities / 0.3).log().float().repeat(num_draws, 1)
    numbers = (torch.arange(num_draws, dtype=torch.float64)[:, None] + 0.5) / num_draws
    token_ids = Drawer().draw(shifted, all_of(num_draws, 6, top_p), numbers)
    assert (token_ids.diff() >= 0).all()
    # A share of 0.8 is reached by the first three of 0.3, 0.3, 0.25.
    kept = probabilities if top_p == 1 else probabilities.where(probabilities >= 0.25, 0.0)
    expected = num_draws * kept / kept.sum()
    assert (torch.bincount(token_ids, minlength=6) - expected).abs().max() <= 1


def test_the_ends_of_the_numbers_draw_the_first_and_the_last_token_that_has_a_mass() -> None:
    shifted = torch.full((2, 1000), -math.inf)
    shifted[:, [7, 400, 990]] = torch.tensor([-1.0, 0.0, -3.0])
    numbers = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64)
    assert Drawer().draw(shifted.clone(), all_of(2, 1000), numbers).tolist() == [7, 990]
    assert Drawer().draw(shifted.clone(), all_of(2, 1000, 0.9), numbers).tolist() == [7, 400]


def test_rows_of_all_kinds_draw_in_a_batch_what_they_draw_alone() -> None:
    num_rows, vocab_size = 12, 3000
    generator = torch.Generator().manual_seed(0)
    shifted = torch.randn(num_rows, vocab_size, generator=generator) * torch.tensor([[0.1], [1.0], [8.0]]).repeat(4, 1)
    shifted -= shifted.amax(-1, keepdim=True)
    filters = all_of(num_rows, vocab_size)
    filters.top_p[3:9] = 0.9
    filters.top_k[6:] = torch.tensor([[2000], [50], [1], [2000], [50], [1]])
    numbers = torch.rand(num_rows, 1, dtype=torch.float64, generator=generator)
    drawer = Drawer()
    together = drawer.draw(shifted.clone(), filters, numbers).tolist()
    for row in range(num_rows):
        own = slice(row, row + 1)
        alone = Filters(filters.temperature[own], filters.top_k[own], filters.top_p[own], filters.min_p[own])
        assert drawer.draw(shifted[own].clone(), alone, numbers[own]).tolist() == together[own]


def test_a_peaked_distribution_is_drawn_from_without_looking_at_the_whole_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the whole vocabulary was searched")

    monkeypatch.setattr(drawing, "filter_row", refuse)
    logits = torch.randn(20, 50_257, generator=torch.Generator().manual_seed(0))
    logits[:, ::1000] += 12
    shifted = logits - logits.amax(-1, keepdim=True)
    many = torch.ones(20, 1, dtype=torch.float64)
    filters = Filters((many * 0.8).float(), (many * 50_257).to(torch.int64), many * 0.95, many * 0.0)
    numbers = torch.linspace(0, 0.999, 20, dtype=torch.float64)[:, None]
    assert len(set(Drawer().draw(shifted, filters, numbers).tolist())) > 5
