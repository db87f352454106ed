from typing import Literal, get_args

import pytest
import torch
from tests.gpu.tolerance import assert_fair, poisoned, up

from headrace.errors import KernelError
from headrace.kernels import reference_fused as reference
from headrace.kernels.activation import Gelu, Layout, bias_gelu, geglu, swiglu

SHAPES = [(1, 1), (3, 7), (113, 203), (5, 3072), (256, 14336), (70000, 8), (1, 8192)]


def mixed(shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Values of every size, large ones too, where exponentials overflow."""
    x = torch.randn(shape, device=device) * torch.randn(shape[1], device=device).mul(3).exp()
    return x.clamp(-200, 200).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("gate", ["silu", "erf", "tanh"])
def test_gated_units_err_as_little_as_torch(
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, int],
    layout: Layout,
    gate: Literal["silu", "erf", "tanh"],
) -> None:
    num_tokens, inner = shape
    gate_up = mixed((num_tokens, 2 * inner), device, dtype)
    out = poisoned(gate_up[:, :inner].contiguous())
    if gate == "silu":
        truth, peer = (reference.swiglu(x, layout=layout) for x in (gate_up.double(), gate_up))
        swiglu(gate_up, layout=layout, out=out)
    else:
        truth, peer = (reference.geglu(x, gelu=gate, layout=layout) for x in (gate_up.double(), gate_up))
        geglu(gate_up, gelu=gate, layout=layout, out=out)
    assert_fair(out, truth, peer)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gelu", get_args(Gelu))
@pytest.mark.parametrize("biased", [False, True])
def test_gelu_errs_as_little_as_torch(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int], gelu: Gelu, biased: bool
) -> None:
    x = mixed(shape, device, dtype)
    bias = torch.randn(shape[1], device=device, dtype=dtype) if biased else None
    truth = reference.bias_gelu(x.double(), up(bias), gelu=gelu)
    peer = reference.bias_gelu(x, bias, gelu=gelu)
    assert_fair(bias_gelu(x, bias, gelu=gelu, out=poisoned(x)), truth, peer)


def test_an_odd_number_of_columns_is_refused(device: torch.device) -> None:
    with pytest.raises(KernelError, match="twice"):
        swiglu(torch.ones(2, 7, device=device))
