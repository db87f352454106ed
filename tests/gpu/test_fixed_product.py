"""Products in a fixed order: right, and the same to the last bit whatever is beside a row or how blocks are cut."""

import pytest
import torch
from tests.gpu.tolerance import assert_fair, poisoned
from torch.nn import functional

from headrace.errors import KernelError
from headrace.kernels.fixed_product import FEW, MANY, Tile, fixed_product

# Rows and columns of the weight: fewer than a tile's, its borders, an odd number of outputs.
WEIGHTS = [(1, 8), (33, 72), (129, 1000), (50257, 64), (256, 4096), (100, 14336)]


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


@pytest.mark.parametrize("tile", [*FEW, *MANY], ids=lambda tile: f"{tile.tokens}x{tile.outputs}")
def test_every_tile_errs_no_more_than_torch(device: torch.device, dtype: torch.dtype, tile: Tile) -> None:
    for index, (outputs, inputs) in enumerate(WEIGHTS):
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        bias = torch.randn(outputs, device=device, dtype=dtype) if index % 2 else None
        for num_tokens in (1, tile.tokens + 1):
            x = torch.randn(num_tokens, inputs, device=device, dtype=dtype)
            out = fixed_product(x, weight, bias, poisoned(x.new_empty(num_tokens, outputs)), tile=tile)
            truth = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
            assert_fair(out, truth, functional.linear(x, weight, bias))


@pytest.mark.parametrize(("outputs", "inputs"), [(6144, 4096), (1024, 3072), (4096, 14336), (151936, 1024)])
def test_a_row_has_the_same_bits_alone_and_beside_others(
    device: torch.device, dtype: torch.dtype, outputs: int, inputs: int
) -> None:
    weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
    x = torch.randn(700, inputs, device=device, dtype=dtype)
    expected = fixed_product(x, weight, None)
    for first, last in ((0, 1), (3, 19), (5, 37), (7, 71), (100, 228), (400, 700)):
        assert torch.equal(fixed_product(x[first:last], weight, None), expected[first:last]), (first, last)
    for tile in (*FEW, *MANY):
        assert torch.equal(fixed_product(x[:200], weight, None, tile=tile), expected[:200]), tile


def test_rows_may_be_parts_of_wider_tensors(device: torch.device) -> None:
    wide = torch.randn(40, 96, device=device, dtype=torch.bfloat16)
    weight, out = torch.randn(24, 72, device=device, dtype=torch.bfloat16), wide.new_zeros(40, 32)
    fixed_product(wide[:, 8:80], weight[:, :], None, out[:, 4:28])
    assert torch.equal(out[:, 4:28], fixed_product(wide[:, 8:80].contiguous(), weight, None))
    assert not out[:, :4].any()
    assert not out[:, 28:].any()


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    x, weight = (torch.zeros(4, 16, device=device, dtype=torch.bfloat16) for _ in range(2))
    for bad_x, bad_weight in (
        (x.float(), weight.float()),
        (x[:, :12], weight[:, :12]),
        (x[:, :8], weight),
        (x.half(), weight),
    ):
        with pytest.raises(KernelError):
            fixed_product(bad_x, bad_weight, None)
    with pytest.raises(KernelError, match="a bias of"):
        fixed_product(x, weight, x[0])
    with pytest.raises(KernelError, match="out is"):
        fixed_product(x, weight, None, x)
