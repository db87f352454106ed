"""The middle product without a GPU: its CUDA source on fibers, cut up in all ways that differ."""

import ctypes
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from tests.gpu.tolerance import assert_fair, poisoned, up
from tests.unit.kernels.emulation.build import Map, build_middle_product, compiler, pointer
from torch import Tensor
from torch.nn.functional import linear, silu

from headrace.errors import KernelError
from headrace.kernels.build import C_TYPES, Macro
from headrace.kernels.launch import load
from headrace.kernels.middle_choice import Tiling, num_groups, x_rows
from headrace.kernels.thin_choice import Product

#: One tile of many, several tiles a block, all numbers of splits, tiles that are no multiple of 32 rows.
TILINGS = (
    Tiling(8, 1, 2),
    Tiling(40, 1, 3),
    Tiling(48, 2, 2),
    Tiling(96, 4, 3),
    Tiling(32, 8, 2),
)
NUM_BLOCKS = 3  # at most, of a product that is not split


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert compiler() is not None, "this test compiles CUDA sources for the CPU: install g++"
    return tmp_path_factory.mktemp("emulated")


def product(
    folder: Path,
    tiling: Tiling,
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
    out: Tensor | None = None,
    chance: int = 0,
) -> Tensor:
    (m, k), n = x.shape, weight.shape[0]
    sizes = Product(m, n, k)
    assert tiling.fits(sizes)
    out = poisoned(x.new_empty(m, n // 2 if gated else n)) if out is None else out
    num_tiles = tiling.num_tiles(sizes)
    clusters = min(num_tiles, NUM_BLOCKS) if tiling.splits == 1 else num_tiles
    _library(folder, tiling, x.dtype, num_groups(sizes), gated).emulate_product(
        *(clusters * tiling.splits, Map.of(weight, tiling.rows), Map.of(x, x_rows(sizes)), pointer(out)),
        *(None if given is None else pointer(given) for given in (bias, residual)),
        *(m, n, tiling.num_steps(sizes), num_tiles, tiling.stages, x_rows(sizes)),
        *(ctypes.c_longlong(0 if rows is None else rows.stride(0)) for rows in (out, residual)),
        chance,
    )
    return out


@cache
def _library(folder: Path, tiling: Tiling, dtype: torch.dtype, groups: int, gated: bool) -> ctypes.CDLL:
    macros: dict[str, Macro] = {
        "DTYPE": C_TYPES[dtype],
        "TILE": tiling.rows,
        "SPLITS": tiling.splits,
    }
    library = build_middle_product({**macros, "GROUPS": groups, "GATED": int(gated)}, Path(mkdtemp(dir=folder)))
    library.emulate_product.argtypes = (
        *(ctypes.c_int, ctypes.POINTER(Map), ctypes.POINTER(Map), *(3 * (ctypes.c_void_p,))),
        *(6 * (ctypes.c_int,)),
        *(ctypes.c_longlong, ctypes.c_longlong, ctypes.c_uint),
    )
    return library


def expect(
    x: Tensor | None, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, *, gated: bool
) -> Tensor:
    assert x is not None
    assert weight is not None
    y = linear(x, weight, bias)
    if gated:
        return silu(y[:, ::2]) * y[:, 1::2]
    return y if residual is None else y + residual


@pytest.mark.parametrize(
    ("tiling", "num_tokens", "out_features", "in_features", "gated", "full"),
    [
        (TILINGS[0], 9, 40, 64, False, True),
        (TILINGS[1], 17, 200, 328, True, False),
        (TILINGS[1], 64, 80, 72, False, False),
        (TILINGS[2], 33, 64, 136, True, True),
        (TILINGS[2], 100, 104, 256, False, True),
        (TILINGS[3], 16, 200, 456, False, True),
        (TILINGS[4], 50, 40, 520, False, True),
    ],
)
def test_products_err_no_more_than_torch_however_they_are_cut(
    folder: Path, tiling: Tiling, num_tokens: int, out_features: int, in_features: int, gated: bool, full: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(num_tokens, in_features).bfloat16()
    weight = torch.randn(out_features, in_features).bfloat16() / in_features**0.5
    bias = torch.randn(out_features).bfloat16() if full else None
    residual = torch.randn(num_tokens, out_features).bfloat16() if full and not gated else None
    found = product(folder, tiling, x, weight, bias=bias, residual=residual, gated=gated, chance=num_tokens)
    truth = expect(*(up(given) for given in (x, weight, bias, residual)), gated=gated)
    assert_fair(found, truth, expect(x, weight, bias, residual, gated=gated))


def test_halves_are_multiplied_as_halves(folder: Path) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(24, 192).half(), torch.randn(48, 192).half()
    found = product(folder, TILINGS[2], x, weight)
    assert_fair(found, x.double() @ weight.double().T, x @ weight.T)


def test_a_token_has_the_same_bits_beside_any_others_and_in_any_tile_of_as_many_splits(folder: Path) -> None:
    torch.manual_seed(2)
    x, weight = torch.randn(70, 264).bfloat16(), torch.randn(104, 264).bfloat16()
    expected = product(folder, TILINGS[0], x[:33], weight)
    assert torch.equal(product(folder, TILINGS[1], x[20:33], weight, chance=5), expected[20:])
    split = product(folder, TILINGS[2], x, weight)
    assert torch.equal(product(folder, TILINGS[2], x[60:], weight, chance=7), split[60:])


def test_a_residual_may_be_the_result_and_rows_parts_of_wider_ones(folder: Path) -> None:
    torch.manual_seed(3)
    wide, stream = torch.randn(20, 96).bfloat16(), torch.randn(20, 72).bfloat16()
    weight, before = torch.randn(40, 72).bfloat16(), stream.clone()
    x, own = wide[:, 8:80], stream[:, 16:56]
    expected = product(folder, TILINGS[1], x.contiguous(), weight, residual=before[:, 16:56])
    product(folder, TILINGS[1], x, weight, residual=own, out=own)
    assert torch.equal(own, expected)
    stream[:, 16:56] = before[:, 16:56]
    assert torch.equal(stream, before)


def test_tensor_maps_lie_where_the_copy_engine_finds_them() -> None:
    with pytest.raises(KernelError, match="48 bytes"):
        load("middle_product", "middle_product", "PPTi", torch.device("cpu"))
    with pytest.raises(KernelError, match="runs on a GPU"):
        load("middle_product", "middle_product", "PPPqqiiTTi", torch.device("cpu"))
