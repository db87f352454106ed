import pytest
import torch
from tests.gpu.tolerance import assert_fair, poisoned

from headrace.errors import KernelError
from headrace.kernels import reference_fused as reference
from headrace.kernels.rms_norm import rms_norm

SHAPES = [(1, 1), (1, 7), (3, 96), (113, 203), (5, 1000), (799, 576), (2, 1024), (4096, 1024), (1, 4096), (1023, 4096)]
WIDE = [(3, 5120), (9, 14336), (2, 33333), (1, 70000)]


@pytest.mark.parametrize("shape", SHAPES + WIDE)
@pytest.mark.parametrize("parts", ["plain", "residual", "both"])
def test_rms_norm_errs_as_little_as_torch(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int], parts: str
) -> None:
    x, weight = torch.randn(shape, device=device, dtype=dtype), torch.randn(shape[1], device=device, dtype=dtype)
    residual = torch.randn_like(x) * 3 if parts != "plain" else None
    bias = torch.randn_like(weight) if parts == "both" else None
    stream = reference.stream(x, residual, bias)
    peer = reference.rms_norm(stream, weight, 1e-6)
    truth = reference.rms_norm(stream.double(), weight.double(), 1e-6)
    out = rms_norm(x, weight, 1e-6, residual=residual, input_bias=bias, out=poisoned(x))
    assert_fair(out, truth, peer)
    if residual is not None:
        assert torch.equal(residual, stream)


def test_the_residual_is_left_alone_where_asked(device: torch.device) -> None:
    x, residual = torch.randn(5, 64, device=device), torch.randn(5, 64, device=device)
    before = residual.clone()
    weight = torch.ones(64, device=device)
    out = rms_norm(x, weight, 1e-6, residual=residual, update_residual=False)
    assert torch.equal(residual, before)
    assert torch.allclose(out, reference.rms_norm(x, weight, 1e-6, residual=before), atol=1e-5)


def test_no_rows_are_no_error(device: torch.device) -> None:
    assert rms_norm(torch.empty(0, 64, device=device), torch.ones(64, device=device), 1e-6).shape == (0, 64)


def test_a_row_has_the_same_bits_in_every_batch_of_a_plan(device: torch.device) -> None:
    x, weight = torch.randn(8, 4096, device=device), torch.randn(4096, device=device)
    together = rms_norm(x, weight, 1e-6)
    assert torch.equal(together[3:4], rms_norm(x[3:4].clone(), weight, 1e-6))


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    x = torch.randn(4, 64, device=device)
    with pytest.raises(KernelError, match="weight"):
        rms_norm(x, torch.ones(63, device=device), 1e-6)
    with pytest.raises(KernelError, match="contiguous"):
        rms_norm(torch.randn(64, 4, device=device).T, torch.ones(64, device=device), 1e-6)
    with pytest.raises(KernelError, match="residual"):
        rms_norm(x, torch.ones(64, device=device), 1e-6, residual=x.half())
    with pytest.raises(KernelError, match="cuda"):
        rms_norm(x, torch.ones(64), 1e-6)
