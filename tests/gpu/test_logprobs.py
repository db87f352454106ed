import pytest
import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels import reference_sampling as reference
from headrace.kernels.logit_edits import Edits, edit_logits, num_words
from headrace.kernels.logits import workspace_floats
from headrace.kernels.logprobs import LogprobResults, rank, tell

NUM_ROWS, MOST_TOP = 23, 20
ASKED = (20, 0, 5, -1, 1, 19)


def results(device: torch.device, most_top: int = MOST_TOP) -> LogprobResults:
    return LogprobResults(
        torch.full((NUM_ROWS,), -1.5, device=device),
        torch.full((NUM_ROWS, most_top), -5, dtype=torch.int32, device=device),
        torch.full((NUM_ROWS, most_top), -2.5, device=device),
        torch.empty(NUM_ROWS, 2, device=device),
    )


def no_edits(device: torch.device, vocab: int) -> Edits:
    def column(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.zeros(NUM_ROWS, *shape, dtype=dtype, device=device)

    return Edits(
        column(torch.int32, 70),
        column(torch.float32, 70),
        column(torch.int32),
        column(torch.int32, num_words(vocab)),
        column(torch.int32),
        column(torch.float32, 70),
    )


def asked(device: torch.device) -> tuple[Tensor, Tensor]:
    """Places, one of them none, and what each place asks for."""
    num_top = torch.tensor([ASKED[place % len(ASKED)] for place in range(NUM_ROWS)], dtype=torch.int32, device=device)
    places = torch.randperm(NUM_ROWS, device=device)
    places[3] = -1
    return places, num_top


@pytest.mark.parametrize("vocab", [1, 7, 33, 2048, 2049, 5003, 32000, 151936])
@pytest.mark.parametrize("kind", ["spread", "few values", "equal", "impossible"])
def test_they_are_the_log_softmax_and_its_most_probable_tokens(
    device: torch.device, dtype: torch.dtype, vocab: int, kind: str
) -> None:
    logits = (torch.randn(NUM_ROWS, vocab, device=device) * 4).to(dtype)
    if kind == "few values":
        logits = torch.randint(-2, 3, (NUM_ROWS, vocab), device=device).to(dtype)
    elif kind == "equal":
        logits = torch.full_like(logits, 1.5)
    elif kind == "impossible":
        logits[:, 1:] = -torch.inf
        logits[:, vocab // 2] = -3e4
    (places, num_top), out = asked(device), results(device)
    workspace = torch.empty(workspace_floats(NUM_ROWS, vocab), device=device)
    rank(logits, places, num_top, out, workspace)
    token_ids = torch.randint(0, vocab, (NUM_ROWS,), device=device)
    tell(logits, places, num_top, token_ids, no_edits(device, vocab), out)
    ids, logprobs = reference.top_logprobs(logits, MOST_TOP)
    chosen = logits.double().log_softmax(-1).clamp(min=-9999.0).gather(1, token_ids[:, None])[:, 0]
    for row, place in enumerate(places.tolist()):
        count = int(num_top[place]) if place >= 0 else -1
        if count < 0:
            assert out.chosen[row] == -1.5
            assert (out.top_ids[row] == -5).all()
            continue
        count = min(count, vocab)
        torch.testing.assert_close(out.chosen[row].double(), chosen[row], atol=2e-5, rtol=1e-5)
        assert torch.equal(out.top_ids[row, :count].long(), ids[row, :count])
        torch.testing.assert_close(out.top_logprobs[row, :count].double(), logprobs[row, :count], atol=2e-5, rtol=1e-5)
        assert (out.top_ids[row, count:] == -5).all()


def test_the_token_that_a_bias_brought_is_told_as_probable_as_it_was(device: torch.device, dtype: torch.dtype) -> None:
    vocab = 5003
    edits = no_edits(device, vocab)
    for place in range(NUM_ROWS):
        edits.bias_ids[place] = torch.randperm(vocab, device=device)[:70].to(torch.int32)
    edits.biases.fill_(50.0)
    edits.num_biases.fill_(70)
    logits = torch.randn(NUM_ROWS, vocab, device=device).to(dtype)
    expected = logits.double().log_softmax(-1)
    places, out = torch.randperm(NUM_ROWS, device=device), results(device)
    num_top = torch.zeros(NUM_ROWS, dtype=torch.int32, device=device)
    rank(logits, places, num_top, out, torch.empty(workspace_floats(NUM_ROWS, vocab), device=device))
    edit_logits(logits, places, edits)
    token_ids = logits.argmax(dim=-1)
    token_ids[::5] = 17
    tell(logits, places, num_top, token_ids, edits, out)
    torch.testing.assert_close(out.chosen.double(), expected.gather(1, token_ids[:, None])[:, 0], atol=2e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    (places, num_top), out = asked(device), results(device)
    with pytest.raises(KernelError, match="workspace"):
        rank(torch.zeros(NUM_ROWS, 10, device=device), places, num_top, out, torch.zeros(3, device=device))
    more = torch.arange(NUM_ROWS + 1, device=device)
    with pytest.raises(KernelError, match="room for"):
        rank(torch.zeros(NUM_ROWS + 1, 10, device=device), more, num_top, out, torch.zeros(9999, device=device))
    with pytest.raises(KernelError, match="more than"):
        results(device, 33)
