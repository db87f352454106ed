"""The fixed product without a GPU: its CUDA source on fibers, and how its tiles are chosen."""

import ctypes
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from tests.gpu.tolerance import assert_fair, poisoned
from tests.unit.kernels.emulation.build import build_fixed_product, compiler, pointer
from torch import Tensor
from torch.nn.functional import linear

from headrace.kernels.build import C_TYPES
from headrace.kernels.fixed_product import FEW, MANY, Tile, choose

#: One of each kind: few tokens, many, and the widest.
TILES = (FEW[0], MANY[-1], MANY[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert compiler() is not None, "this test compiles CUDA sources for the CPU: install g++"
    return tmp_path_factory.mktemp("emulated")


def product(
    folder: Path, tile: Tile, x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    (m, k), n = x.shape, weight.shape[0]
    out = poisoned(x.new_empty(m, n)) if out is None else out
    _library(folder, tile, x.dtype).emulate_product(
        *(tile.num_blocks(m, n), pointer(out), pointer(x), pointer(weight)),
        *(None if bias is None else pointer(bias), m, n, k),
        *(ctypes.c_longlong(stride) for stride in (out.stride(0), x.stride(0), weight.stride(0))),
    )
    return out


@cache
def _library(folder: Path, tile: Tile, dtype: torch.dtype) -> ctypes.CDLL:
    return build_fixed_product({"DTYPE": C_TYPES[dtype], **tile.macros}, Path(mkdtemp(dir=folder)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_products_err_no_more_than_torch_at_every_border(folder: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tile = TILES[1]
    for m, n, k, biased in ((1, 1, 8, False), (65, 33, 72, True), (64, 64, 64, False), (3, 130, 328, True)):
        x, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
        bias = torch.randn(n).to(dtype) if biased else None
        truth = linear(x.double(), weight.double(), None if bias is None else bias.double())
        assert_fair(product(folder, tile, x, weight, bias), truth, linear(x, weight, bias))


def test_a_row_has_the_same_bits_in_every_tile_and_beside_any_rows(folder: Path) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(150, 456).bfloat16(), torch.randn(140, 456).bfloat16()
    expected = product(folder, TILES[0], x, weight)
    for tile in TILES:
        for first, last in ((0, 150), (149, 150), (7, 30)):
            assert torch.equal(product(folder, tile, x[first:last], weight), expected[first:last]), (tile, first)


def test_more_blocks_of_tokens_than_go_down_together_are_all_computed(folder: Path) -> None:
    torch.manual_seed(2)
    x, weight = torch.randn(16 * 9 + 1, 64).bfloat16(), torch.randn(70, 64).bfloat16()
    found = product(folder, FEW[0], x, weight)
    assert_fair(found, x.double() @ weight.double().T, x @ weight.T)


def test_rows_may_be_parts_of_wider_ones_and_nothing_else_is_written(folder: Path) -> None:
    torch.manual_seed(3)
    wide, out = torch.randn(20, 96).bfloat16(), torch.zeros(20, 48).bfloat16()
    weight = torch.randn(24, 72).bfloat16()
    product(folder, FEW[0], wide[:, 8:80], weight, out=out[:, 4:28])
    assert torch.equal(out[:, 4:28], product(folder, FEW[0], wide[:, 8:80].contiguous(), weight))
    assert not out[:, :4].any()
    assert not out[:, 28:].any()


def test_few_rows_take_narrow_tiles_and_many_fill_the_gpu() -> None:
    assert [choose(rows, 4096, 132).tokens for rows in (1, 16, 17, 64)] == [16, 16, 32, 64]
    assert choose(256, 4096, 132) == MANY[-1]
    assert choose(8192, 4096, 132) == MANY[0]


@pytest.mark.parametrize("tile", [*FEW, *MANY], ids=lambda tile: f"{tile.tokens}x{tile.outputs}")
def test_blocks_fit_a_multiprocessor(tile: Tile) -> None:
    assert tile.blocks * (tile.shared_bytes + 1024) <= 228 << 10
    assert tile.blocks * tile.threads <= 2048
