import pytest
import torch
from tests.gpu.tolerance import assert_fair, poisoned

from headrace.kernels import reference_fused as reference
from headrace.kernels.softmax import softmax

SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (3, 5, 11, 32),
    (2, 3, 7, 20),
    (1, 1, 45, 128),
    (32, 16, 33, 24),
    (1, 2, 113, 203),
    (3, 4, 10, 512),
    (64, 16, 8, 40),
    (2, 1, 3, 5000),
    (1, 1, 2, 40001),
    (8, 16, 64, 1024),
    (4, 8, 128, 1000),
    (1, 2, 3, 8192),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["none", "seen", "added", "causal"])
def test_softmax_errs_as_little_as_torch(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int], kind: str
) -> None:
    batch, _, queries, length = shape
    scores = torch.randn(shape, device=device, dtype=dtype) * 4
    mask = None
    if kind == "seen":
        mask = torch.rand(batch, 1, 1, length, device=device) < 0.7
        mask[..., 0] = True
    elif kind == "added":
        mask = torch.randn(1, shape[1], queries, length, device=device, dtype=dtype)
    elif kind == "causal":
        mask = torch.ones(queries, length, device=device, dtype=torch.bool).tril(length - queries)
        mask = mask[None, None]
    wide = mask.double() if mask is not None and mask.dtype == dtype else mask
    truth = reference.softmax(scores.double(), wide, scale=0.3)
    peer = reference.softmax(scores, mask, scale=0.3)
    assert_fair(softmax(scores, mask, scale=0.3, out=poisoned(scores)), truth, peer)


@pytest.mark.parametrize("scale", [-0.3, 0.0])
@pytest.mark.parametrize("length", [40, 5000])
def test_a_scale_may_be_negative_or_nought(device: torch.device, dtype: torch.dtype, length: int, scale: float) -> None:
    scores = torch.randn(2, 4, 10, length, device=device, dtype=dtype) * 4
    mask = torch.ones(10, length, device=device, dtype=torch.bool).tril(length - 10)[None, None]
    for given in (None, mask):
        truth = reference.softmax(scores.double(), given, scale=scale)
        assert_fair(softmax(scores, given, scale=scale), truth, reference.softmax(scores, given, scale=scale))


def test_a_mask_may_begin_anywhere(device: torch.device, dtype: torch.dtype) -> None:
    """Elsewhere than where vectors of it could be read."""
    scores = torch.randn(3, 2, 5, 64, device=device, dtype=dtype)
    mask = (torch.rand(3, 1, 5, 67, device=device) < 0.7)[..., 1:65]
    mask[..., 0] = True
    for given in (mask, mask.to(dtype)):
        wide = given if given.dtype == torch.bool else given.double()
        truth = reference.softmax(scores.double(), wide)
        assert_fair(softmax(scores, given), truth, reference.softmax(scores, given))


@pytest.mark.parametrize("length", [3, 700, 9000, 50000])
def test_a_row_that_sees_nothing_becomes_zeros(device: torch.device, length: int) -> None:
    scores = torch.randn(2, 1, 3, length, device=device)
    mask = torch.ones(2, 1, 3, length, device=device, dtype=torch.bool)
    mask[1, 0, 2] = False
    out = softmax(scores, mask)
    assert not out[1, 0, 2].any()
    assert torch.allclose(out.sum(dim=-1).flatten()[:5], torch.ones(5, device=device))


def test_large_scores_do_not_overflow(device: torch.device) -> None:
    scores = torch.randn(1, 1, 4, 300, device=device) + 3e4
    assert_fair(softmax(scores), reference.softmax(scores.double()), reference.softmax(scores))
