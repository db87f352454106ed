"""The thin product without a GPU: its CUDA source on fibers, cut up in all ways that differ."""

import ctypes
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from tests.gpu.tolerance import assert_fair, poisoned, up
from tests.unit.kernels.emulation.build import build_thin_product, compiler, pointer
from torch import Tensor
from torch.nn.functional import linear, silu

from headrace.kernels import reference_fused as reference
from headrace.kernels.build import C_TYPES, Macro
from headrace.kernels.thin_choice import Product, Tiling, row_runs, x_pitch

EPS = 1e-5
NUM_BLOCKS = 3
#: Pieces that are all of a row and parts of it, x at all places.
TILINGS = (
    Tiling(8, 256, 2, 4, x_in_shared=True),
    Tiling(16, 128, 3, 4, x_in_shared=False),
    Tiling(32, 256, 1, 8, x_in_shared=True),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert compiler() is not None, "this test compiles CUDA sources for the CPU: install g++"
    return tmp_path_factory.mktemp("emulated")


class Emulated:
    """A thin product, cut up in one way, and the counter that its launches share."""

    def __init__(self, folder: Path, tiling: Tiling, weight: Tensor) -> None:
        self._folder, self._tiling, self._weight = folder, tiling, weight
        self.counter = torch.zeros(1, dtype=torch.int32)

    def __call__(
        self,
        x: Tensor,
        *,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        norm: Tensor | None = None,
        gated: bool = False,
        chance: int = 0,
    ) -> Tensor:
        (m, k), n, tiling = x.shape, self._weight.shape[0], self._tiling
        product = Product(m, n, k)
        num_blocks = min(-(-n // tiling.tile), NUM_BLOCKS)
        whole = tiling.whole_tiles(product, num_blocks)
        left = n - whole * num_blocks * tiling.tile
        macros: dict[str, Macro] = {
            "DTYPE": C_TYPES[x.dtype],
            "TOKEN_TILES": -(-m // 8),
            "TILE": tiling.tile,
            "PIECE": tiling.piece,
            "STAGES": tiling.stages,
            "WARPS": tiling.warps,
            "X_IN_SHARED": int(tiling.x_in_shared),
            "DEALT": int(tiling.dealt),
            "GATED": int(gated),
            "NORMED": int(norm is not None),
            "ROW_RUNS": 0 if norm is None else row_runs(k),
            "HELD": 1 if norm is None else tiling.held_runs(product),
        }
        out = poisoned(x.new_empty(m, n // 2 if gated else n))
        _library(self._folder, tuple(macros.items())).emulate_product(
            num_blocks,
            *(None if given is None else pointer(given) for given in (out, x, self._weight, bias, residual, norm)),
            pointer(self.counter),
            *(m, n, k, out.shape[1], x_pitch(k), whole, -(-left // (2 * num_blocks)) * 2),
            *(-(-left // tiling.tile) + num_blocks - 1, EPS, chance),
        )
        return out


@cache
def _library(folder: Path, macros: tuple[tuple[str, Macro], ...]) -> ctypes.CDLL:
    given: Mapping[str, Macro] = dict(macros)
    library = build_thin_product(given, Path(mkdtemp(dir=folder)))
    library.emulate_product.argtypes = (
        *(ctypes.c_int, *(7 * (ctypes.c_void_p,)), *(7 * (ctypes.c_int,))),
        *(ctypes.c_uint, ctypes.c_float, ctypes.c_uint),
    )
    return library


@pytest.mark.parametrize("dealt", [False, True])
@pytest.mark.parametrize(
    ("tiling", "num_tokens", "out_features", "in_features"),
    [(TILINGS[0], 5, 200, 520), (TILINGS[1], 8, 150, 264), (TILINGS[1], 11, 20, 384), (TILINGS[2], 1, 330, 256)],
)
def test_products_err_no_more_than_torch_however_they_are_cut(
    folder: Path, tiling: Tiling, num_tokens: int, out_features: int, in_features: int, dealt: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(num_tokens, in_features).bfloat16()
    weight = torch.randn(out_features, in_features).bfloat16() / in_features**0.5
    bias, residual = torch.randn(out_features).bfloat16(), torch.randn(num_tokens, out_features).bfloat16()
    product = Emulated(folder, replace(tiling, dealt=dealt), weight)
    for chance in range(2):
        found = product(x, bias=bias, residual=residual, chance=chance)
        truth = linear(*(up(given) for given in (x, weight, bias))) + residual.double()  # type: ignore[arg-type]
        assert_fair(found, truth, linear(x, weight, bias) + residual)
        assert product.counter.item() == 0, "the next launch would begin in the middle"


@pytest.mark.parametrize("dealt", [False, True])
def test_norms_and_gates_are_those_of_single_operations(folder: Path, dealt: bool) -> None:
    torch.manual_seed(1)
    x, scale = torch.randn(3, 512).bfloat16(), torch.randn(512).bfloat16()
    weight = torch.randn(212, 512).bfloat16() / 512**0.5
    product = Emulated(folder, replace(TILINGS[0], dealt=dealt), weight)
    found = product(x, norm=scale, gated=True)

    def expect(x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
        y = linear(reference.rms_norm(x, scale, EPS), weight)
        return silu(y[:, ::2]) * y[:, 1::2]

    assert_fair(found, expect(x.double(), scale.double(), weight.double()), expect(x, scale, weight))
    assert torch.equal(found, Emulated(folder, TILINGS[0], weight)(x, norm=scale, gated=True))
