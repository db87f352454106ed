"""Products in 8 bits against their own definition in float64."""

import pytest
import torch
from torch import Tensor
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

from headrace.errors import ConfigurationError
from headrace.kernels.encoder_reference import EncoderReference
from headrace.kernels.int8_linear import Int8Linear, Int8Packer


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(weight: Tensor, bias: Tensor | None) -> Int8Linear:
    linear = Int8Packer(EncoderReference()).pack_linear(weight, bias)
    assert isinstance(linear, Int8Linear)
    return linear


def quantised(x: Tensor, num_steps: int) -> Tensor:
    """``x`` as its levels stand for it, float64."""
    least, most = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    step = (most - least) / num_steps
    return (least + step * ((x - least) / step.clamp_min(1e-12)).round()).double()


def by_torchao(weight: Tensor) -> Tensor:
    """``weight`` as torchao's levels stand for it, float64."""
    module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    quantize_(module, Int8DynamicActivationInt8WeightConfig())
    rounded: Tensor = module.weight.dequantize()
    assert 0 < (rounded - weight).abs().max() < weight.abs().max() / 127
    return rounded.double()


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("num_tokens", "inputs", "outputs"), [(1, 384, 1536), (129, 96, 48), (300, 1536, 384)])
def test_only_the_rounding_to_levels_is_lost(num_tokens: int, inputs: int, outputs: int, biased: bool) -> None:
    weight, bias = drawn(outputs, inputs, seed=1), drawn(outputs, seed=2) if biased else None
    x = torch.nn.functional.gelu(drawn(num_tokens, inputs))
    linear = packed(weight, bias)
    ours = linear.multiply(x)
    expected = quantised(x, linear.num_steps) @ by_torchao(weight).T + (0 if bias is None else bias)
    # A number half-way between two levels may fall to either.
    assert (ours - expected).abs().max() < 2 * float((x.amax() - x.amin()) / linear.num_steps * weight.abs().max())
    assert (ours - expected).abs().mean() < 1e-4
    truth = x.double() @ weight.double().T + (0 if bias is None else bias)
    assert 1e-4 < (ours - truth).abs().mean() / truth.std() < 0.02


def test_a_token_gets_the_same_bits_in_any_company_and_a_constant_one_is_exact() -> None:
    linear, x = packed(drawn(64, 128), drawn(64)), drawn(200, 128, seed=4)
    x[7] = 2.5
    x[8] = 0
    together = linear.multiply(x)
    for index in (0, 7, 8, 127, 128, 199):
        assert torch.equal(linear.multiply(x[index : index + 1])[0], together[index])
    assert linear.bias is not None
    assert (together[7] - (2.5 * linear.sums + linear.bias)).abs().max() < 1e-5
    assert torch.equal(together[8], linear.bias)


def test_without_torchao_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'headrace\[int8\]'"):
        Int8Packer(EncoderReference())
