import pytest
import torch

from headrace.errors import KernelError
from headrace.kernels import reference_sampling as reference
from headrace.kernels.logit_edits import Edits, edit_logits, num_words


def edits(device: torch.device, num_places: int, vocab: int, most_biases: int) -> Edits:
    ids = torch.stack([torch.randperm(vocab)[:most_biases] for _ in range(num_places)]).to(torch.int32)
    forbidden = torch.randint(-(2**31), 2**31 - 1, (num_places, num_words(vocab)), dtype=torch.int32)
    forbidden &= torch.randint(-(2**31), 2**31 - 1, forbidden.shape, dtype=torch.int32)
    forbidden[::3] = 0
    return Edits(
        ids.to(device),
        (torch.randn(num_places, most_biases) * 5).to(device),
        torch.randint(0, most_biases + 1, (num_places,), dtype=torch.int32).to(device),
        forbidden.to(device),
        (forbidden != 0).sum(dim=1, dtype=torch.int32).to(device),
        torch.zeros(num_places, most_biases, device=device),
    )


@pytest.mark.parametrize("vocab", [33, 1003, 151936])
def test_biases_are_added_and_forbidden_tokens_go(device: torch.device, dtype: torch.dtype, vocab: int) -> None:
    given = edits(device, 20, vocab, min(vocab, 700))
    logits = torch.randn(9, vocab, device=device).to(dtype)
    places = torch.randperm(20, device=device)[:9]
    places[4] = -1
    before, expected = logits.clone(), logits.clone()
    reference.edit_logits(expected, places, given)
    edit_logits(logits, places, given)
    assert torch.equal(logits, expected)
    for row, place in enumerate(places.tolist()):
        if place >= 0:
            count = int(given.num_biases[place])
            ids = given.bias_ids[place, :count].long()
            assert torch.equal(given.unbiased[place, :count], before[row, ids].float())


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    given, places = edits(device, 4, 100, 10), torch.arange(4, device=device)
    with pytest.raises(KernelError, match="places"):
        edit_logits(torch.zeros(5, 100, device=device), places, given)
    with pytest.raises(KernelError, match="forbidden"):
        edit_logits(torch.zeros(4, 300, device=device), places, given)
