"""However a token is found, it is the one that the definition names, to the bit."""

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.workers.engine import drawing
from headrace.workers.engine.drawing import ONE, Drawer, Filters, kept_mass

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


@settings(max_examples=300, deadline=None)
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
    kept = [int(mass) for mass in kept_mass(scaled, mass, top_k=top_k, top_p=top_p, min_p=min_p).tolist()]
    target = min(int(uniform * sum(kept)), sum(kept) - 1)
    assert next(token_id for token_id, sum_to in enumerate(accumulate(kept)) if sum_to > target) == expected


def test_a_peaked_distribution_is_drawn_from_without_looking_at_the_whole_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the whole vocabulary was searched")

    monkeypatch.setattr(drawing, "kept_mass", refuse)
    logits = torch.randn(20, 50_257, generator=torch.Generator().manual_seed(0))
    logits[:, ::1000] += 12
    shifted = logits - logits.amax(-1, keepdim=True)
    many = torch.ones(20, 1, dtype=torch.float64)
    filters = Filters((many * 0.8).float(), (many * 50_257).to(torch.int64), many * 0.95, many * 0.0)
    numbers = torch.linspace(0, 0.999, 20, dtype=torch.float64)[:, None]
    assert len(set(Drawer().draw(shifted, filters, numbers).tolist())) > 5
