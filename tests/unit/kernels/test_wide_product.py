"""The wide product without a GPU: its CUDA source on fibers, cut up in all ways that differ, and where it is taken."""

import ctypes
from dataclasses import replace
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

from headrace.kernels import middle_choice
from headrace.kernels.build import C_TYPES, Macro
from headrace.kernels.thin_choice import MOST_BYTES, Product
from headrace.kernels.wide_choice import MANY, MANY_TOKENS, MEASURED, MOST_TOKENS, Tiling, choose

#: Every direction of a cluster alone and several together, rings that come round, tiles of no multiple of 32 rows.
ALONE = Tiling(40, 1, 1, 1, 2)
SHARED = Tiling(48, 1, 2, 1, 3)
SPLIT = Tiling(80, 1, 1, 2, 2)
ALL = Tiling(48, 1, 2, 4, 2)
TWO_GROUPS = Tiling(80, 2, 2, 2, 2)
THREE_GROUPS = Tiling(32, 3, 1, 1, 2)
OVERLAPPING = Tiling(64, 2, 1, 1, 2, band=2, overlaps=True)
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
        *(Map.of(x, tiling.x_rows(sizes)), pointer(out)),
        *(None if rows is None else pointer(rows) for rows in (bias, residual)),
        *(m, n, tiling.num_steps(sizes), tiling.num_tiles(sizes), tiling.num_token_tiles(sizes), tiling.band),
        *(tiling.stages, tiling.x_rows(sizes)),
        *(ctypes.c_longlong(0 if rows is None else rows.stride(0)) for rows in (out, residual)),
        chance,
    )
    return out


@cache
def _library(folder: Path, tiling: Tiling, dtype: torch.dtype, gated: bool) -> ctypes.CDLL:
    macros: dict[str, Macro] = {"DTYPE": C_TYPES[dtype], **tiling.macros(gated=gated)}
    library = build_wide_product(macros, Path(mkdtemp(dir=folder)))
    library.emulate_product.argtypes = (
        *(ctypes.c_int, ctypes.POINTER(Map), ctypes.POINTER(Map), *(3 * (ctypes.c_void_p,))),
        *(8 * (ctypes.c_int,)),
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
        (SHARED, 100, 208, 328, True, False),
        (SHARED, 5, 104, 136, False, True),  # the second block has no tokens
        (SPLIT, 33, 104, 328, False, True),
        (ALL, 128, 136, 200, False, True),
        (ALL, 70, 112, 264, True, True),
        (THREE_GROUPS, 150, 104, 200, True, False),
        (TWO_GROUPS, 200, 112, 200, False, True),
        (replace(ALONE, band=2), 300, 200, 72, True, True),  # tiles of tokens, in bands of which the last is not whole
        (replace(SHARED, band=3), 600, 208, 200, False, True),
        (OVERLAPPING, 600, 200, 328, True, True),
        (OVERLAPPING, 300, 200, 264, False, True),
        (replace(OVERLAPPING, rows=96, token_blocks=2, stages=3), 900, 208, 328, True, False),
        (replace(OVERLAPPING, rows=96, token_blocks=2, stages=3), 700, 200, 264, False, True),
        (OVERLAPPING, 20, 56, 200, False, True),  # a tile a block, behind which no other comes
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
    truth = expect(*(up(rows) for rows in (x, weight, bias, residual)), gated=gated)
    assert_fair(found, truth, expect(x, weight, bias, residual, gated=gated))


def test_halves_are_multiplied_as_halves(folder: Path) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(24, 192).half(), torch.randn(48, 192).half()
    found = product(folder, ALONE, x, weight)
    assert_fair(found, x.double() @ weight.double().T, x @ weight.T)


def test_a_token_has_the_same_bits_beside_any_others_and_in_any_tile_of_as_many_splits(folder: Path) -> None:
    torch.manual_seed(2)
    x, weight = torch.randn(120, 200).bfloat16(), torch.randn(104, 200).bfloat16()
    expected = product(folder, SHARED, x, weight)
    assert torch.equal(product(folder, ALONE, x[60:100], weight, chance=5), expected[60:100])
    assert torch.equal(product(folder, THREE_GROUPS, x[-33:], weight, chance=6), expected[-33:])
    assert torch.equal(product(folder, replace(OVERLAPPING, rows=32), x, weight, chance=8), expected)
    split = product(folder, TWO_GROUPS, x, weight)
    assert torch.equal(product(folder, SPLIT, x[70:], weight, chance=7), split[70:])


def test_a_residual_may_be_the_result_and_rows_parts_of_wider_ones(folder: Path) -> None:
    torch.manual_seed(3)
    wide, stream = torch.randn(20, 96).bfloat16(), torch.randn(20, 72).bfloat16()
    weight, before = torch.randn(40, 72).bfloat16(), stream.clone()
    x, own = wide[:, 8:80], stream[:, 16:56]
    expected = product(folder, ALONE, x.contiguous(), weight, residual=before[:, 16:56])
    product(folder, ALONE, x, weight, residual=own, out=own)
    assert torch.equal(own, expected)
    stream[:, 16:56] = before[:, 16:56]
    assert torch.equal(stream, before)


@given(
    st.sampled_from((ALONE, SHARED, SPLIT, ALL, *(each for *_, each in sum(MEASURED.values(), ())))),
    st.integers(1, 9000).map(lambda eights: 8 * eights),
    st.integers(1, 148),
)
def test_clusters_walk_over_all_tiles_and_no_more_of_them_are_launched_than_find_room(
    tiling: Tiling, out_features: int, num_sms: int
) -> None:
    sizes = Product(64, out_features, 4096)
    clusters, tiles = tiling.num_clusters(sizes, num_sms), tiling.num_tiles(sizes)
    assert 0 <= tiles * tiling.rows - out_features < tiling.rows
    if tiling.splits > 1:  # a block has one tile
        assert clusters == tiles
    else:
        assert 1 <= clusters <= max(num_sms // tiling.cluster, 1)
        assert clusters <= tiles


def test_what_was_measured_fits_and_is_taken_for_no_other_tokens_and_weights() -> None:
    for (out_features, in_features), several in MEASURED.items():
        for least, most, tiling in several:
            assert middle_choice.MOST_TOKENS < least <= most <= MOST_TOKENS
            for num_tokens in (least, most):
                sizes = Product(num_tokens, out_features, in_features)
                assert tiling.fits(sizes)
                assert choose(sizes) is tiling
            assert tiling.shared_bytes <= MOST_BYTES
        assert choose(Product(128, out_features, in_features)) is None
        assert choose(Product(257, out_features, in_features)) is None
        assert choose(Product(200, out_features + 8, in_features)) is None


def test_cuts_that_the_kernel_cannot_make_do_not_fit() -> None:
    sizes = Product(200, 4096, 128)
    assert Tiling(64, 2, 2, 2, 4).fits(sizes)
    assert Tiling(64, 2, 1, 1, 4).fits(sizes)
    assert not Tiling(64, 2, 1, 2, 4).fits(sizes), "several tiles of tokens, whose columns are shared"
    assert not Tiling(64, 4, 1, 1, 4).fits(sizes), "too many groups"
    assert not Tiling(72, 2, 2, 1, 4).fits(sizes), "half a tile is no whole eights"
    assert not Tiling(264, 2, 2, 1, 2).fits(sizes), "too tall"
    assert not Tiling(64, 2, 2, 4, 4).fits(sizes), "more splits than steps"
    assert not Tiling(64, 2, 2, 1, 16).fits(sizes), "too much memory"
    assert not Tiling(64, 2, 2, 1, 1).fits(sizes), "no ring"
    assert Tiling(32, 2, 1, 1, 4, overlaps=True).fits(sizes)
    assert not Tiling(64, 2, 1, 1, 4, overlaps=True).fits(sizes), "fewer steps than a tile has parts, and one"
    assert not Tiling(40, 2, 1, 1, 4, overlaps=True).fits(sizes), "no whole parts"
    assert not Tiling(32, 1, 1, 1, 4, overlaps=True).fits(sizes), "too few registers to trade"
    assert not Tiling(32, 2, 1, 2, 4, overlaps=True).fits(sizes), "shared columns"


@given(st.integers(1, 20_000), st.integers(1, 2000).map(lambda eights: 8 * eights), st.sampled_from((1, 2, 4)))
def test_blocks_have_all_tokens_in_shares_of_whole_eights(
    num_tokens: int, out_features: int, token_blocks: int
) -> None:
    tiling, sizes = Tiling(64, 2, token_blocks, 1, 4), Product(num_tokens, out_features, 4096)
    share, blocks = tiling.x_rows(sizes), tiling.num_token_tiles(sizes) * token_blocks
    assert share % 8 == 0
    assert share <= tiling.tokens
    assert 0 <= share * blocks - num_tokens < 8 * blocks
    assert 0 < tiling.used(sizes) <= 1


def test_many_tokens_are_taken_where_they_fill_most_of_what_the_multiprocessors_could_compute() -> None:
    def taken(shape: tuple[int, int], *num_tokens: int) -> list[bool]:
        found = [choose(Product(each, *shape)) for each in num_tokens]
        assert all(tiling is None or tiling in [many for _, many in MANY[shape]] for tiling in found)
        return [tiling is not None for tiling in found]

    assert taken((28672, 4096), 512, MANY_TOKENS, 1100, 2048, 4096, 8192) == [False, True, False, True, True, True]
    assert taken((6144, 1024), 512, MANY_TOKENS, 2048, 4096, 8192) == [False, False, True, True, True]
    for shape, tilings in MANY.items():
        for least, tiling in tilings:
            assert least >= MANY_TOKENS
            assert tiling.fits(Product(least, *shape))
            assert tiling.shared_bytes <= MOST_BYTES
        assert [choose(Product(each, *shape)) for each in (2048, 4096)] == [tiling for _, tiling in tilings]
        assert choose(Product(8192, shape[0] - 16, shape[1])) is None
