from dataclasses import replace

import pytest
import torch
from tests.gpu.tolerance import assert_fair, normal, poisoned
from torch import Tensor
from torch.nn import functional

from headrace.errors import KernelError
from headrace.kernels.activation import swiglu
from headrace.kernels.device import open_device
from headrace.kernels.launch import is_ours
from headrace.kernels.programmatic import make_programmatic
from headrace.kernels.rms_norm import rms_norm
from headrace.kernels.thin_choice import MOST_TOKENS, Product, Tiling
from headrace.kernels.thin_product import Norm, ThinProduct

# Rows and columns of the weight: a tile's and a piece's borders, fewer rows than a tile, fewer columns than a group.
WEIGHTS = [(1, 8), (15, 24), (16, 1024), (17, 1000), (33, 2056), (1000, 3072), (4097, 1032), (257, 4096), (100, 14336)]
TILINGS = [
    Tiling(8, 1024, 4, 8, x_in_shared=True, blocks=1),
    Tiling(8, 256, 2, 4, x_in_shared=False),
    Tiling(16, 1024, 2, 8, x_in_shared=False),
    Tiling(16, 512, 6, 4, x_in_shared=True),
    Tiling(16, 2048, 1, 8, x_in_shared=True),
    Tiling(32, 512, 3, 8, x_in_shared=True),
    Tiling(32, 1024, 2, 8, x_in_shared=False),
    Tiling(8, 2048, 2, 8, x_in_shared=True, blocks=1, alone=True, dealt=True),
    Tiling(16, 512, 3, 4, x_in_shared=False, dealt=True),
]
NORMING = [
    Tiling(8, 1024, 4, 8, x_in_shared=True, blocks=1, alone=True),
    Tiling(16, 1024, 3, 8, x_in_shared=True, blocks=2),
    Tiling(32, 1024, 2, 4, x_in_shared=True),
    Tiling(8, 1024, 3, 8, x_in_shared=True, blocks=1, dealt=True),
]


@pytest.fixture(autouse=True)
def _hopper(device: torch.device) -> None:
    if not open_device(device.index).arch.startswith("sm_9"):
        pytest.skip("thin products need Hopper's bulk copies")


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


def check(num_tokens: int, weight: Tensor, *, full: bool, tiling: Tiling | None = None) -> None:
    out_features, in_features = weight.shape
    x = normal(num_tokens, in_features, device=weight.device, dtype=weight.dtype)
    bias, residual = (
        (
            torch.randn(out_features, device=weight.device, dtype=weight.dtype),
            normal(num_tokens, out_features, device=weight.device, dtype=weight.dtype),
        )
        if full
        else (None, None)
    )
    out = poisoned(x.new_empty(num_tokens, out_features))
    ThinProduct(weight, bias)(x, out, residual=residual, tiling=tiling)
    truth = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    peer = functional.linear(x, weight, bias)
    if residual is not None:
        truth, peer = truth + residual.double(), peer + residual
    assert_fair(out, truth, peer)


@pytest.mark.parametrize(("out_features", "in_features"), WEIGHTS)
@pytest.mark.parametrize("num_tokens", [*range(1, 10), 13, 16])
def test_products_err_as_little_as_torch(
    device: torch.device, dtype: torch.dtype, num_tokens: int, out_features: int, in_features: int
) -> None:
    weight = normal(out_features, in_features, device=device, dtype=dtype)
    check(num_tokens, weight, full=num_tokens % 2 == 0)


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize(("out_features", "in_features"), [(15, 24), (1000, 2056), (5000, 1024)])
@pytest.mark.parametrize("num_tokens", [1, 8, 11])
def test_products_are_right_however_they_are_cut(
    device: torch.device, tiling: Tiling, num_tokens: int, out_features: int, in_features: int
) -> None:
    check(num_tokens, normal(out_features, in_features, device=device, dtype=torch.bfloat16), full=True, tiling=tiling)


def test_a_residual_may_be_added_in_place(device: torch.device, dtype: torch.dtype) -> None:
    weight, x = (normal(n, 1024, device=device, dtype=dtype) for n in (300, 5))
    residual = torch.randn(5, 300, device=device, dtype=dtype)
    out = residual.clone()
    ThinProduct(weight)(x, out, residual=out)
    truth = residual.double() + x.double() @ weight.double().T
    assert_fair(out, truth, residual + x @ weight.T)


@pytest.mark.parametrize(
    ("out_features", "in_features"), [(500, 1024), (3000, 1032), (100, 3072), (80, 4096), (40, 14336)]
)
def test_a_token_has_the_same_bits_alone_and_among_others(
    device: torch.device, out_features: int, in_features: int
) -> None:
    product = ThinProduct(torch.randn(out_features, in_features, device=device, dtype=torch.bfloat16))
    x = torch.randn(MOST_TOKENS, in_features, device=device, dtype=torch.bfloat16)
    together = x.new_empty(MOST_TOKENS, out_features)
    product(x, together)
    for num_tokens in (1, 4, 5, 8):
        fewer = poisoned(together[:num_tokens])
        product(x[-num_tokens:], fewer)
        assert torch.equal(fewer, together[-num_tokens:])


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("out_features", "in_features"), [(2, 256), (514, 576), (1000, 1024), (640, 4096)])
@pytest.mark.parametrize("tiling", NORMING, ids=str)
def test_joined_products_have_the_bits_of_single_operations(
    device: torch.device, dtype: torch.dtype, tiling: Tiling, out_features: int, in_features: int, biased: bool
) -> None:
    weight = normal(out_features, in_features, device=device, dtype=dtype)
    scale, bias = (torch.randn(size, device=device, dtype=dtype) for size in (in_features, out_features))
    product, norm = ThinProduct(weight, bias if biased else None), Norm(scale, 1e-5)
    for num_tokens in (1, 8, 13):
        x = torch.randn(num_tokens, in_features, device=device, dtype=dtype) * 3
        residual = torch.randn(num_tokens, out_features, device=device, dtype=dtype)
        plain, joined = poisoned(residual), poisoned(residual)
        if not tiling.can_norm(Product(num_tokens, out_features, in_features)):
            with pytest.raises(KernelError, match="cannot norm"):
                product(x, joined, norm=norm, tiling=tiling)
            continue
        product(rms_norm(x, scale, 1e-5), plain, tiling=tiling)
        product(x, joined, norm=norm, tiling=tiling)
        if in_features > 256:
            assert torch.equal(joined, plain)
        else:
            # So short rows are summed in another order by the norm alone.
            assert_fair(joined, plain.double(), plain)
        gated = poisoned(residual[:, : out_features // 2])
        product(x, gated, norm=norm, gated=True, tiling=tiling)
        assert torch.equal(gated, swiglu(joined, layout="alternating"))
        product(x, plain, residual=residual, norm=norm, tiling=tiling)
        assert torch.equal(plain, joined + residual)


@pytest.mark.parametrize("x_in_shared", [True, False])
@pytest.mark.parametrize("out_features", [40, 4000, 30_000])
def test_dealt_tiles_are_all_computed_in_launches_that_start_early(
    device: torch.device, out_features: int, x_in_shared: bool
) -> None:
    weight = torch.randn(out_features, 1024, device=device, dtype=torch.bfloat16)
    product, tiling = ThinProduct(weight), Tiling(8, 512, 4, 8, x_in_shared=x_in_shared, dealt=True)
    x, expected = weight[:7].clone(), weight.new_empty(7, out_features)
    product(x, expected, tiling=replace(tiling, dealt=False))
    stream, outs = open_device(device.index or 0).new_stream(), [torch.empty_like(expected) for _ in range(12)]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
        for out in outs:
            product(x, out, tiling=tiling)
    assert make_programmatic(graph.raw_cuda_graph(), is_ours) > 0
    graph.instantiate()
    for _ in range(20):
        for out in outs:
            out.fill_(torch.nan)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(out, expected) for out in outs)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    weight = torch.randn(64, 128, device=device, dtype=torch.bfloat16)
    x, out = weight[:3].clone(), weight.new_empty(3, 64)
    product = ThinProduct(weight)
    with pytest.raises(KernelError, match="fp16"):
        ThinProduct(weight.float())
    with pytest.raises(KernelError, match="multiple of 8"):
        ThinProduct(weight[:, 1:])
    with pytest.raises(KernelError, match="bias"):
        ThinProduct(weight, weight[0])
    with pytest.raises(KernelError, match="x is"):
        product(weight[: MOST_TOKENS + 1].clone(), out)
    with pytest.raises(KernelError, match="out is"):
        product(x, out, gated=True)
    with pytest.raises(KernelError, match="pairs"):
        product(x, out[:, :32], gated=True, residual=out[:, :32])
    with pytest.raises(KernelError, match="norm's weight"):
        product(x, out, norm=Norm(x[0, :64], 1e-5))
    with pytest.raises(KernelError, match="out is"):
        product(x, out[:, 1:])
    with pytest.raises(KernelError, match="x is"):
        product(x.half(), out.half())
