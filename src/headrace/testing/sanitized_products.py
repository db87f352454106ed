"""Products alone on a GPU, for compute-sanitizer: see ``sanitized``."""

from collections.abc import Iterator
from itertools import product

from torch import Tensor
from torch.nn import functional

from headrace.kernels.fixed_product import FEW, MANY, fixed_product
from headrace.kernels.middle_choice import Tiling as MiddleTiling
from headrace.kernels.middle_product import MiddleProduct
from headrace.kernels.thin_choice import Product, choose_norming
from headrace.kernels.thin_choice import Tiling as ThinTiling
from headrace.kernels.thin_product import Norm, ThinProduct
from headrace.kernels.wide_choice import Tiling as WideTiling
from headrace.kernels.wide_product import WideProduct
from headrace.testing.computed import Computed, normal, room

_DEALT_AND_NORMED = ThinTiling(16, 1024, 3, 8, x_in_shared=True, blocks=2, dealt=True)


def fixed_products() -> Iterator[Computed]:
    """Products in fixed orders: every tile, ragged edges."""
    for tile, (outputs, inputs) in product((*FEW, *MANY), ((33, 72), (129, 1000))):
        weight, bias = normal(outputs, inputs), normal(outputs)
        for num_tokens in (1, tile.tokens + 1):
            x = normal(num_tokens, inputs)
            y = room(x, num_tokens, outputs)
            fixed_product(x.cuda(), weight.cuda(), bias.cuda(), y, tile=tile)
            what = f"tiles of {tile.tokens} x {tile.outputs}: {num_tokens} x {outputs} x {inputs}"
            yield Computed(what, y, x.double() @ weight.double().T + bias.double())


def thin_products() -> Iterator[Computed]:
    """Products of few tokens: every way to cut them up that few rows of a weight reach, ragged edges."""
    for (outputs, inputs), num_tokens in product(
        ((300, 1000), (2500, 1024), (6000, 1000), (20000, 264), (100, 3000), (300, 4096), (50, 9000)), (1, 2, 8, 13)
    ):
        weight, x, bias = normal(outputs, inputs), normal(num_tokens, inputs), normal(outputs)
        y = room(x, num_tokens, outputs)
        ThinProduct(weight.cuda(), bias.cuda())(x.cuda(), y)
        truth = x.double() @ weight.double().T + bias.double()
        yield Computed(f"{num_tokens} x {outputs} x {inputs}", y, truth)
        if outputs > 1 << 11:
            y = room(x, num_tokens, outputs)
            dealt = ThinTiling(8, 1024, 3, 8, x_in_shared=num_tokens > 1, blocks=1, dealt=True)
            ThinProduct(weight.cuda(), bias.cuda())(x.cuda(), y, tiling=dealt)
            yield Computed(f"{num_tokens} x {outputs} x {inputs}, dealt", y, truth)


def joined_thin_products() -> Iterator[Computed]:
    """Products of few tokens with a norm before them, a gate or a sum behind them."""
    for (outputs, inputs), num_tokens in product(((600, 1024), (20000, 264), (304, 4096)), (1, 4, 8)):
        weight, x = normal(outputs, inputs) / inputs**0.5, normal(num_tokens, inputs)
        scale, residual = normal(inputs), normal(num_tokens, outputs)
        ours, norm = ThinProduct(weight.cuda()), Norm(scale.cuda(), 1e-5)
        size = f"{num_tokens} x {outputs} x {inputs}"
        normed = functional.rms_norm(x.double(), (inputs,), scale.double(), 1e-5) @ weight.double().T
        y = room(x, num_tokens, outputs)
        # Where the engine norms by a kernel of its own: as one that deals tiles out would.
        tiling = choose_norming(Product(num_tokens, outputs, inputs)) or _DEALT_AND_NORMED
        ours(x.cuda(), y, norm=norm, tiling=tiling)
        yield Computed(f"{size}, normed", y, normed)
        half = room(x, num_tokens, outputs // 2)
        ours(x.cuda(), half, norm=norm, gated=True, tiling=tiling)
        yield Computed(f"{size}, normed and gated", half, _gated(normed))
        summed = residual.cuda()
        ours(x.cuda(), summed, residual=summed)
        yield Computed(f"{size}, added", summed, residual.double() + x.double() @ weight.double().T)


def middle_products() -> Iterator[Computed]:
    """Products of some tokens: one to eight blocks a tile, ragged edges, a gate, a sum."""
    cases = [
        (64, 512, 32, MiddleTiling(64, 1, 4)),
        (256, 1024, 33, MiddleTiling(96, 1, 3)),
        (2048, 320, 24, MiddleTiling(8, 1, 2)),
        (200, 1000, 128, MiddleTiling(96, 1, 3)),
        (256, 1024, 50, MiddleTiling(64, 2, 4)),
        (1000, 1096, 64, MiddleTiling(104, 8, 2)),
        (8, 8, 8, None),
    ]
    for outputs, inputs, num_tokens, tiling in cases:
        weight, x, bias = normal(outputs, inputs), normal(num_tokens, inputs), normal(outputs)
        residual = normal(num_tokens, outputs)
        for added in (None, residual):
            y = room(x, num_tokens, outputs)
            given = None if added is None else added.cuda()
            MiddleProduct(weight.cuda(), bias.cuda())(x.cuda(), y, residual=given, tiling=tiling)
            truth = x.double() @ weight.double().T + bias.double() + (0 if added is None else added.double())
            yield Computed(
                f"{num_tokens} x {outputs} x {inputs}, {tiling}{'' if added is None else ', added'}", y, truth
            )
    weight, x = normal(512, 1024) / 32, normal(100, 1024)
    y = room(x, 100, 256)
    MiddleProduct(weight.cuda())(x.cuda(), y, gated=True, tiling=MiddleTiling(128, 4, 2))
    yield Computed("gated", y, _gated(x.double() @ weight.double().T))


def wide_products() -> Iterator[Computed]:
    """Products of many tokens: shared tokens and columns, one to three groups of warps, several tiles a block."""
    cases = [
        (1000, 520, 130, WideTiling(64, 2, 2, 1, 4)),
        (1000, 520, 256, WideTiling(144, 2, 2, 4, 4)),
        (1000, 520, 192, WideTiling(96, 1, 4, 2, 3)),
        (1000, 520, 192, WideTiling(224, 3, 1, 1, 4)),
        (1000, 520, 150, WideTiling(144, 3, 1, 4, 2)),
        (1040, 584, 700, WideTiling(256, 2, 2, 1, 4, band=2)),
        (1040, 264, 1000, WideTiling(64, 2, 1, 1, 3, band=3)),
        # As many tiles as leave some blocks two.
        (1040, 264, 1000, WideTiling(64, 2, 1, 1, 3, band=3, overlaps=True)),
        (1040, 584, 3500, WideTiling(256, 2, 2, 1, 4, band=2, overlaps=True)),
    ]
    for outputs, inputs, num_tokens, tiling in cases:
        weight, x, bias = normal(outputs, inputs) / inputs**0.5, normal(num_tokens, inputs), normal(outputs)
        residual, ours = normal(num_tokens, outputs), WideProduct(weight.cuda(), bias.cuda())
        truth, size = x.double() @ weight.double().T + bias.double(), f"{num_tokens} x {outputs} x {inputs}, {tiling}"
        y = room(x, num_tokens, outputs)
        ours(x.cuda(), y, residual=residual.cuda(), tiling=tiling)
        yield Computed(f"{size}, added", y, truth + residual.double())
        if outputs % 16 == 0:
            y = room(x, num_tokens, outputs // 2)
            ours(x.cuda(), y, gated=True, tiling=tiling)
            yield Computed(f"{size}, gated", y, _gated(truth))


def cublas() -> Iterator[Computed]:
    """Nothing of ours: one product of cuBLAS, over which racecheck stumbles."""
    weight, x = normal(4096, 1024) / 32, normal(256, 1024)
    yield Computed("256 x 4096 x 1024", functional.linear(x.cuda(), weight.cuda()), x.double() @ weight.double().T)


def _gated(y: Tensor) -> Tensor:
    """Of rows in which gates and ups take turns."""
    return functional.silu(y[:, ::2]) * y[:, 1::2]
