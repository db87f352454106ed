"""The wide product without a GPU: its CUDA source on fibers, cut up in all ways that differ, and where it is taken."""

import ctypes
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.gpu.tolerance import assert_fair, poisoned, up
from tests.unit.kernels.emulation.build import Map, build_wide_product, compiler, pointer
from torch import Tensor
from torch.nn.functional import linear, silu

from headrace.kernels.build import C_TYPES
from headrace.kernels.thin_choice import MOST_BYTES, Product
from headrace.kernels.wide_choice import MEASURED, Tiling, choose

#: Every direction of a cluster alone and several together, rings that come round, tiles that are no multiple of 32 rows.
ALONE = Tiling(40, 1, 1, 1, 1, 2)
SHARED_WEIGHT = Tiling(48, 1, 2, 1, 1, 3)
SHARED_X = Tiling(24, 1, 1, 2, 1, 2)
SPLIT = Tiling(80, 1, 1, 1, 2, 2)
ALL = Tiling(48, 1, 2, 2, 2, 2)
HALF_SPLIT = Tiling(112, 2, 2, 1, 2, 3)
THREE_GROUPS = Tiling(32, 3, 1, 2, 1, 2)
NUM_SMS = 4  # so few that a cluster computes several tiles


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
    _library(folder, tiling, x.dtype, gated).emulate_product(
        tiling.num_clusters(sizes, NUM_SMS) * tiling.cluster,
        Map.of(weight, tiling.rows // tiling.token_blocks),
        *(Map.of(x, tiling.tokens // tiling.row_blocks), pointer(out)),
        *(None if given is None else pointer(given) for given in (bias, residual)),
        *(m, n, tiling.num_steps(sizes), tiling.num_tiles(sizes), tiling.stages),
        *(ctypes.c_longlong(0 if rows is None else rows.stride(0)) for rows in (out, residual)),
        chance,
    )
    return out


@cache
def _library(folder: Path, tiling: Tiling, dtype: torch.dtype, gated: bool) -> ctypes.CDLL:
    macros = {"DTYPE": C_TYPES[dtype], **tiling.macros(gated=gated)}
    library = build_wide_product(macros, Path(mkdtemp(dir=folder)))
    library.emulate_product.argtypes = (
        *(ctypes.c_int, ctypes.POINTER(Map), ctypes.POINTER(Map), *(3 * (ctypes.c_void_p,))),
        *(5 * (ctypes.c_int,)),
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
        (ALONE, 50, 200, 328, True, True),
        (SHARED_WEIGHT, 100, 208, 328, True, False),
        (SHARED_WEIGHT, 64, 104, 136, False, True),  # the second block has no tokens
        (SHARED_X, 60, 136, 200, False, True),  # a neighbour has no tile
        (SPLIT, 33, 104, 328, False, True),
        (ALL, 128, 136, 264, False, True),
        (ALL, 70, 112, 136, True, True),
        (THREE_GROUPS, 150, 104, 200, True, False),
        (HALF_SPLIT, 200, 128, 456, False, True),
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
