from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels import reference_sampling as reference
from headrace.kernels.penalties import Penalties, count_tokens
from headrace.kernels.sampling import Draws, SamplingParameters, sample
from headrace.testing.draws import assert_same_draws, keepings

VOCABS = [1, 7, 64, 1000, 2048, 2049, 5003, 32000, 151936]
#: Temperature, top_k, top_p, min_p.
KINDS = [
    (0.0, 0, 1.0, 0.0),
    (1.0, 0, 1.0, 0.0),
    (0.7, 50, 0.9, 0.0),
    (1.3, 0, 0.95, 0.0),
    (1.0, 1, 1.0, 0.0),
    (0.6, 20, 1.0, 0.05),
    (1.0, 0, 1.0, 0.1),
    (1.0, 1024, 0.99, 0.0),
    (1.0, 3000, 0.9, 0.001),
    (3.0, 0, 0.999, 0.0),
    (3.0, 4000, 1.0, 0.0),
    (1e-30, 0, 0.5, 0.0),
    (0.0, 5, 0.1, 0.9),
]


def parameters(device: torch.device, num_rows: int, kinds: list[tuple[float, int, float, float]]) -> SamplingParameters:
    given = [kinds[row % len(kinds)] for row in range(num_rows)]

    def column(index: int, dtype: torch.dtype) -> Tensor:
        return torch.tensor([kind[index] for kind in given], dtype=dtype, device=device)

    return SamplingParameters(
        column(0, torch.float32),
        column(1, torch.int32),
        column(2, torch.float32),
        column(3, torch.float32),
        torch.randint(-(2**63), 2**63 - 1, (num_rows,), device=device),
        torch.arange(num_rows, device=device) // 3 + 100,
        torch.full((num_rows,), 100, device=device),
    )


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("spread", [0.02, 1.0, 4.0])
def test_draws_are_those_of_a_sorted_vocabulary(
    device: torch.device, dtype: torch.dtype, vocab: int, spread: float
) -> None:
    logits = (torch.randn(91, vocab, device=device) * spread).to(dtype)
    asked = parameters(device, 91, KINDS)
    drawn, kept = sample(logits, asked), keepings(logits, asked)
    assert drawn.valid.all()
    assert_same_draws(drawn.token_ids, kept)
    alone = sample(logits, asked, searches=False)
    assert torch.equal(alone.token_ids, drawn.token_ids)


@pytest.mark.parametrize("vocab", [1000, 50257])
def test_equal_logits_are_told_apart_by_their_ids(device: torch.device, dtype: torch.dtype, vocab: int) -> None:
    """Whole vocabularies of few values: thousands of tokens are tied at every cut."""
    logits = torch.randint(0, 3, (91, vocab), device=device).to(dtype)
    logits[::4] = 0
    asked = parameters(device, 91, KINDS)
    drawn = sample(logits, asked).token_ids
    assert_same_draws(drawn, keepings(logits, asked))
    assert torch.equal(sample(logits, asked, searches=False).token_ids, drawn)


@pytest.mark.parametrize("vocab", VOCABS)
def test_greedy_rows_alone_take_a_shorter_way_to_the_same_tokens(
    device: torch.device, dtype: torch.dtype, vocab: int
) -> None:
    logits = torch.randint(-3, 4, (33, vocab), device=device).to(dtype)
    logits[1::4] = torch.randn(8, vocab, device=device).to(dtype)
    for row, value in ((2, torch.nan), (3, -torch.nan), (4, torch.inf)):
        logits[row, vocab // 2] = value
    logits[6] = -torch.inf
    asked = parameters(device, 33, KINDS[:1])
    general, short = sample(logits, asked), sample(logits, asked, all_greedy=True)
    assert torch.equal(short.token_ids, general.token_ids)
    assert torch.equal(short.valid, general.valid)
    assert (~short.valid).nonzero()[:, 0].tolist() == [2, 3, 4, 6]


def test_top_p_of_nothing_keeps_the_best_token(device: torch.device) -> None:
    logits = torch.randn(13, 32000, device=device) * 0.1
    asked = parameters(device, 13, [(1.0, 0, 0.0, 0.0), (1.0, 5000, 0.0, 0.0), (1.0, 0, 1.0, 1.0)])
    assert torch.equal(sample(logits, asked).token_ids, logits.argmax(dim=-1))


def test_a_row_draws_the_same_alone_and_in_a_batch(device: torch.device) -> None:
    logits = torch.randn(256, 151936, device=device, dtype=torch.bfloat16) * 2
    asked = parameters(device, 256, KINDS)
    together = sample(logits, asked).token_ids
    for row in range(0, 256, 17):
        one = SamplingParameters(
            **{name: getattr(asked, name)[row : row + 1].clone() for name in SamplingParameters.__slots__}
        )
        assert sample(logits[row : row + 1].clone(), one).token_ids.item() == together[row].item()
    assert torch.equal(sample(logits, asked).token_ids, together)


def test_draws_follow_the_distribution(device: torch.device) -> None:
    num_rows = 60_000
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1], device=device)
    logits = probabilities.log().repeat(num_rows, 1)
    asked = parameters(device, num_rows, [(1.0, 0, 1.0, 0.0)])
    counts = torch.bincount(sample(logits, asked).token_ids, minlength=4)
    expected = num_rows * probabilities
    assert ((counts - expected).abs() < 5 * (expected * (1 - probabilities)).sqrt()).all()


@pytest.mark.parametrize("vocab", [100, 151936])
def test_rows_that_are_not_numbers_are_told_and_spoil_no_other(device: torch.device, vocab: int) -> None:
    logits = torch.randn(78, vocab, device=device)
    asked = parameters(device, 78, KINDS)
    expected = sample(logits, asked).token_ids
    spoilt = {3: torch.nan, 17: torch.inf}
    for row, value in spoilt.items():
        logits[row, vocab // 2] = value
    logits[30] = -torch.inf
    logits[40] = torch.nan
    drawn = sample(logits, asked)
    bad = [3, 17, 30, 40]
    assert (~drawn.valid).nonzero()[:, 0].tolist() == bad
    assert not drawn.token_ids[bad].any()
    good = drawn.valid
    assert torch.equal(drawn.token_ids[good], expected[good])


@pytest.mark.parametrize("vocab", [1000, 151936])
def test_a_banned_token_is_never_drawn(device: torch.device, vocab: int) -> None:
    logits = torch.randn(910, vocab, device=device)
    allowed = torch.randint(0, vocab, (5,), device=device)
    banned = torch.full_like(logits, -torch.inf)
    banned[:, allowed] = logits[:, allowed]
    drawn = sample(banned, parameters(device, 910, KINDS))
    assert drawn.valid.all()
    assert torch.isin(drawn.token_ids, allowed).all()


@pytest.mark.parametrize("vocab", [999, 32000])
def test_penalties_and_counts_are_the_reference_s(device: torch.device, dtype: torch.dtype, vocab: int) -> None:
    num_rows, num_slots = 39, 12
    counts = torch.zeros(num_slots, vocab + vocab % 2, device=device, dtype=torch.int16)
    expected_counts = counts.clone()
    for slot in range(num_slots):
        tokens = torch.randint(0, 300, (500,), device=device)
        count_tokens(counts[slot], tokens, 200)
        reference.count_tokens(expected_counts[slot], tokens, 200)
    assert torch.equal(counts, expected_counts)
    slots = torch.full((num_rows,), -1, device=device, dtype=torch.int32)
    slots[1::4] = torch.arange(10, device=device, dtype=torch.int32)
    penalties = Penalties(
        torch.rand(num_rows, device=device) + 0.6,
        torch.rand(num_rows, device=device) * 2 - 0.5,
        torch.rand(num_rows, device=device) * 0.5,
        counts,
        slots,
    )
    logits = (torch.randn(num_rows, vocab, device=device) * 2).to(dtype)
    asked = parameters(device, num_rows, KINDS)
    kept = keepings(logits, asked, penalties)
    drawn = sample(logits, asked, penalties=penalties)
    assert_same_draws(drawn.token_ids, kept)
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected_counts[slot, drawn.token_ids[row]] += 1
    assert torch.equal(counts, expected_counts)


def test_rows_draw_by_the_parameters_of_their_places_and_leave_their_tokens_there(device: torch.device) -> None:
    num_places, vocab = 64, 5003
    asked = parameters(device, num_places, KINDS)
    counts = torch.zeros(num_places, vocab + 1, device=device, dtype=torch.int16)
    for place in range(num_places):
        count_tokens(counts[place], torch.randint(0, 300, (50,), device=device), 20)
    repetition, presence, frequency = (torch.rand(num_places, device=device) + 0.6 for _ in range(3))
    slots = torch.arange(num_places, device=device, dtype=torch.int32)
    slots[::3] = -1
    for all_greedy in (False, True):
        if all_greedy:
            asked.temperature.zero_()
        order = torch.randperm(num_places, device=device)
        logits = torch.randn(num_places, vocab, device=device) * 2
        ordered = sample(logits, asked, penalties=Penalties(repetition, presence, frequency, counts.clone(), slots))
        places = order[:37].clone()
        places[5] = -1
        last_token = torch.full((num_places,), -7, device=device)
        out = Draws.empty(37, device)
        out.token_ids.fill_(-3)
        out = replace(out, last_token=last_token)
        counted = counts.clone()
        penalties = Penalties(repetition, presence, frequency, counted, slots)
        sample(logits[order[:37]], asked, places=places, penalties=penalties, out=out, all_greedy=all_greedy)
        expected = ordered.token_ids[places.clamp(min=0)]
        expected[5] = -3
        assert torch.equal(out.token_ids, expected)
        assert (last_token == -7).sum() == num_places - 36
        kept = places[places >= 0]
        assert torch.equal(last_token[kept], out.token_ids[places >= 0])
        grown = (counted - counts).sum(dim=1, dtype=torch.int64)
        assert torch.equal(grown[kept], (slots[kept] >= 0).long())
        assert grown.sum() == (slots[kept] >= 0).sum()


def test_a_captured_draw_reads_what_has_changed(device: torch.device) -> None:
    logits = torch.randn(8, 32000, device=device)
    asked = parameters(device, 8, KINDS[1:4])
    out = Draws.empty(8, device)
    sample(logits, asked, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sample(logits, asked, out=out)
    for step in range(5):
        asked.position.fill_(100 + step)
        logits.normal_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out.token_ids, sample(logits, asked).token_ids)


def test_a_row_that_begins_anywhere_is_read_right(device: torch.device, dtype: torch.dtype) -> None:
    """Rows of an odd stride, or of a view into wider ones."""
    wide = torch.randn(26, 40007, device=device).to(dtype)
    asked = parameters(device, 26, KINDS)
    for first in (0, 1, 2, 4):
        logits = wide[:, first : first + 32003]
        assert_same_draws(sample(logits, asked).token_ids, keepings(logits, asked))


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    asked = parameters(device, 4, KINDS)
    with pytest.raises(KernelError, match="parameters of 4"):
        sample(torch.zeros(5, 10, device=device), asked)
    with pytest.raises(KernelError, match="workspace"):
        sample(torch.zeros(4, 10, device=device), asked, workspace=torch.zeros(3, device=device))
    with pytest.raises(KernelError, match="top_k"):
        replace(asked, top_k=asked.top_k.long())
    changes: dict[str, Any] = {"seed": asked.seed[:2]}
    with pytest.raises(KernelError, match="seed"):
        replace(asked, **changes)
