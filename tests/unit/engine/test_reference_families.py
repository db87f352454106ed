"""The operations that only some families need."""

import torch

from headrace.kernels.ragged import Ragged
from headrace.kernels.reference import ReferenceOperations
from headrace.kernels.table import HeadNorm

REFERENCE = ReferenceOperations()

KV_HEADS, GROUP, HEAD_DIM = 2, 3, 8


def turned(
    x: torch.Tensor, *, rotary: tuple[torch.Tensor, torch.Tensor] | None = None, norm: HeadNorm | None = None
) -> None:
    """Run ``rotary_kv`` in place on ``x [num_tokens, num_heads + 2 * KV_HEADS, head_dim]``."""
    nothing, slots = torch.empty(0, dtype=torch.int64), torch.arange(len(x))
    memory = torch.empty(2, len(x), KV_HEADS, x.shape[2])
    with REFERENCE.step(Ragged(nothing, nothing, nothing, slots, (), (memory,))):
        REFERENCE.rotary_kv(x.flatten(1, 2), 0, x.shape[1] - 2 * KV_HEADS, rotary=rotary, norm=norm)


def test_a_layer_norm_adds_into_the_residual_stream_centres_scales_and_shifts() -> None:
    torch.manual_seed(0)
    x, residual, weight, bias = torch.randn(3, 16), torch.randn(3, 16), torch.randn(16), torch.randn(16)
    total = (x + residual).double()
    normed = REFERENCE.layer_norm(x, weight, bias, 1e-5, residual=residual)
    centred = total - total.mean(dim=-1, keepdim=True)
    expected = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias
    assert torch.equal(residual.double(), total)
    assert torch.allclose(normed.double(), expected, atol=1e-5)


def test_a_layer_norm_without_a_residual_leaves_its_input() -> None:
    x = torch.randn(3, 16)
    kept = x.clone()
    normed = REFERENCE.layer_norm(x, torch.ones(16), torch.zeros(16), 0.0)
    assert torch.equal(x, kept)
    assert normed.mean(dim=-1).abs().max() < 1e-6


def test_a_head_norm_takes_each_head_for_itself_and_touches_no_other() -> None:
    torch.manual_seed(0)
    x, query_norm, key_norm = torch.randn(4, 8, HEAD_DIM), torch.randn(HEAD_DIM), torch.randn(HEAD_DIM)
    kept = x.clone()
    turned(x, norm=HeadNorm(query_norm, key_norm, 1e-6))
    normed = kept / (kept.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(x[:, :4], normed[:, :4] * query_norm, atol=1e-5)
    assert torch.allclose(x[:, 4:6], normed[:, 4:6] * key_norm, atol=1e-5)
    assert torch.equal(x[:, 6:], kept[:, 6:])


def test_a_rotation_turns_the_first_numbers_of_a_head_and_leaves_the_others() -> None:
    torch.manual_seed(0)
    x, positions, inv_freq = torch.randn(3, 6, HEAD_DIM), torch.tensor([0, 5, 900]), torch.tensor([1.0, 0.03])
    kept = x.clone()
    turned(x, rotary=REFERENCE.rotary_table(positions, inv_freq, torch.float32))
    assert torch.equal(x[:, 4:], kept[:, 4:]), "values do not turn"
    x, kept = x[:, :4], kept[:, :4]
    for token, position in enumerate(positions.tolist()):
        for pair, frequency in enumerate(inv_freq.tolist()):
            number = torch.view_as_complex(torch.stack((kept[token, :, pair], kept[token, :, pair + 2]), dim=-1))
            number = number * torch.polar(torch.tensor(1.0), torch.tensor(position * frequency))
            assert torch.allclose(x[token, :, pair], number.real, atol=1e-5)
            assert torch.allclose(x[token, :, pair + 2], number.imag, atol=1e-5)
    assert torch.equal(x[..., 4:], kept[..., 4:])


def test_a_rotation_is_scaled_where_the_table_is() -> None:
    x, positions, inv_freq = torch.randn(3, 6, 4), torch.tensor([0, 5, 9]), torch.tensor([1.0, 0.03])
    scaled = x.clone()
    turned(x, rotary=REFERENCE.rotary_table(positions, inv_freq, torch.float32))
    turned(scaled, rotary=REFERENCE.rotary_table(positions, inv_freq, torch.float32, scale=1.5))
    assert torch.allclose(scaled[:, :4], 1.5 * x[:, :4], atol=1e-6)


def test_gelu_is_the_exact_one_or_its_approximation_as_asked() -> None:
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    exact = x * (1 + torch.erf(x / 2**0.5)) / 2
    tanh = x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    assert torch.allclose(REFERENCE.gelu(x.clone(), "none"), exact, atol=1e-12)
    assert torch.allclose(REFERENCE.gelu(x.clone(), "tanh"), tanh, atol=1e-12)
    assert (tanh - exact).abs().max() > 1e-4, "the two would be the same"


def test_adding_is_done_in_place() -> None:
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    expected = x + y
    REFERENCE.add(x, y)
    assert torch.equal(x, expected)
