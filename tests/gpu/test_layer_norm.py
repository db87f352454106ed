import pytest
import torch
from tests.gpu.test_rms_norm import SHAPES, WIDE
from tests.gpu.tolerance import assert_fair, poisoned, up

from headrace.kernels import reference_fused as reference
from headrace.kernels.layer_norm import layer_norm


@pytest.mark.parametrize("shape", SHAPES + WIDE)
@pytest.mark.parametrize("parts", ["plain", "residual", "both"])
def test_layer_norm_errs_as_little_as_torch(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int], parts: str
) -> None:
    x, weight = torch.randn(shape, device=device, dtype=dtype), torch.randn(shape[1], device=device, dtype=dtype)
    shift = torch.randn_like(weight) if parts != "residual" else None
    residual = torch.randn_like(x) * 3 if parts != "plain" else None
    bias = torch.randn_like(weight) if parts == "both" else None
    stream = reference.stream(x, residual, bias)
    peer = reference.layer_norm(stream, weight, shift, 1e-5)
    truth = reference.layer_norm(stream.double(), weight.double(), up(shift), 1e-5)
    out = layer_norm(x, weight, shift, 1e-5, residual=residual, input_bias=bias, out=poisoned(x))
    assert_fair(out, truth, peer)
    if residual is not None:
        assert torch.equal(residual, stream)


@pytest.mark.parametrize("mean", [0.0, 1e3, -1e5])
@pytest.mark.parametrize("width", [64, 1000, 4096, 40000])
def test_a_large_mean_does_not_drown_the_variance(device: torch.device, mean: float, width: int) -> None:
    """E[x^2] - E[x]^2 would leave nothing of a variance of 1 beside a mean of 1e5 in fp32."""
    x = torch.randn(300, width, device=device) + mean
    weight, bias = torch.ones(width, device=device), torch.zeros(width, device=device)
    truth = reference.layer_norm(x.double(), weight.double(), bias.double(), 1e-5)
    peer = reference.layer_norm(x, weight, bias, 1e-5)
    assert_fair(layer_norm(x, weight, bias, 1e-5), truth, peer)


@pytest.mark.parametrize("shape", [(300, 64), (300, 1000), (4096, 1024), (300, 4096)])
def test_rows_of_one_value_become_the_bias(device: torch.device, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Nothing is left of a large mean, though what is left would be divided by the root of eps."""
    x = torch.randint(-30_000, 30_000, (shape[0], 1), device=device).to(dtype).expand(shape).contiguous()
    weight, bias = torch.randn(shape[1], device=device, dtype=dtype), torch.randn(shape[1], device=device, dtype=dtype)
    assert torch.equal(layer_norm(x, weight, bias, 1e-5), bias.expand(shape))


def test_an_outlier_first_does_not_spoil_its_row(device: torch.device) -> None:
    """A variance shifted by a row's first value would."""
    x = torch.randn(10, 4096, device=device)
    x[:, 0] = 1e4
    weight = torch.ones(4096, device=device)
    truth = reference.layer_norm(x.double(), weight.double(), None, 1e-5)
    assert_fair(layer_norm(x, weight, None, 1e-5), truth, reference.layer_norm(x, weight, None, 1e-5))
