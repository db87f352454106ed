import pytest
import torch
from tests.gpu.tolerance import assert_fair, normal, poisoned
from torch import Tensor
from torch.nn import functional

from headrace.errors import KernelError
from headrace.kernels.activation import swiglu
from headrace.kernels.device import open_device
from headrace.kernels.launch import is_ours
from headrace.kernels.middle_choice import MOST_TOKENS, Tiling, choose
from headrace.kernels.middle_product import MiddleProduct
from headrace.kernels.programmatic import make_programmatic
from headrace.kernels.rms_norm import rms_norm
from headrace.kernels.thin_choice import Product

# Rows and columns of the weight: fewer than a tile and a panel, no multiples of either, and a model's.
WEIGHTS = [(8, 8), (24, 72), (104, 200), (1032, 1000), (6144, 1024), (4096, 4096), (256, 14336)]
NUM_TOKENS = [1, 8, 9, 16, 17, 31, 33, 48, 63, 64, 65, 100, 127, 128]
TILINGS = [
    Tiling(8, 1, 2),
    Tiling(16, 1, 20, alone=False),
    Tiling(48, 1, 3, alone=False),
    Tiling(120, 1, 3),
    Tiling(248, 1, 2),
    Tiling(16, 2, 8),
    Tiling(96, 2, 2),
    Tiling(40, 4, 3, alone=False),
    Tiling(192, 4, 2),
    Tiling(32, 8, 2),
]


@pytest.fixture(autouse=True)
def _hopper(device: torch.device) -> None:
    if not open_device(device.index).arch.startswith("sm_9"):
        pytest.skip("middle products need Hopper's products of four warps")


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


def check(num_tokens: int, weight: Tensor, *, full: bool, tiling: Tiling | None = None) -> None:
    out_features, in_features = weight.shape
    x = normal(num_tokens, in_features, device=weight.device, dtype=weight.dtype)
    bias = torch.randn(out_features, device=weight.device, dtype=weight.dtype) if full else None
    residual = normal(num_tokens, out_features, device=weight.device, dtype=weight.dtype) if full else None
    out = poisoned(x.new_empty(num_tokens, out_features))
    MiddleProduct(weight, bias)(x, out, residual=residual, tiling=tiling)
    truth = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    peer = functional.linear(x, weight, bias)
    if residual is not None:
        truth, peer = truth + residual.double(), peer + residual
    assert_fair(out, truth, peer)


@pytest.mark.parametrize(("out_features", "in_features"), WEIGHTS)
def test_products_err_as_little_as_torch(
    device: torch.device, dtype: torch.dtype, out_features: int, in_features: int
) -> None:
    weight = normal(out_features, in_features, device=device, dtype=dtype)
    for num_tokens in NUM_TOKENS:
        check(num_tokens, weight, full=num_tokens % 2 == 0)


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_products_are_right_however_they_are_cut(device: torch.device, tiling: Tiling) -> None:
    for out_features, in_features in ((8, 520), (1000, 2056), (5000, 1024)):
        weight = normal(out_features, in_features, device=device, dtype=torch.bfloat16)
        for num_tokens in (1, 17, 64, 128):
            if tiling.fits(Product(num_tokens, out_features, in_features)):
                check(num_tokens, weight, full=True, tiling=tiling)


def test_all_tilings_can_cut_up_what_they_are_tried_on() -> None:
    for tiling in TILINGS:
        assert all(tiling.fits(Product(num_tokens, 1000, 2056)) for num_tokens in (1, 17, 64))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("out_features", "in_features"), [(16, 576), (528, 1024), (4096, 4096)])
def test_joined_products_have_the_bits_of_single_operations(
    device: torch.device, dtype: torch.dtype, out_features: int, in_features: int, biased: bool
) -> None:
    weight = normal(out_features, in_features, device=device, dtype=dtype)
    bias = torch.randn(out_features, device=device, dtype=dtype) if biased else None
    product = MiddleProduct(weight, bias)
    for num_tokens in (9, 32, 50, 77):
        x = torch.randn(num_tokens, in_features, device=device, dtype=dtype)
        residual = torch.randn(num_tokens, out_features, device=device, dtype=dtype)
        plain, joined = poisoned(residual), poisoned(residual)
        product(x, plain)
        product(x, joined, residual=residual)
        assert torch.equal(joined, plain + residual)
        product(x, residual, residual=residual)
        assert torch.equal(residual, joined)
        gated = poisoned(residual[:, : out_features // 2].contiguous())
        product(x, gated, gated=True)
        assert torch.equal(gated, swiglu(plain, layout="alternating"))


@pytest.mark.parametrize("splits", [1, 2, 4, 8])
def test_a_token_has_the_same_bits_alone_and_among_others_and_in_any_tile(device: torch.device, splits: int) -> None:
    product = MiddleProduct(torch.randn(1000, 4096, device=device, dtype=torch.bfloat16))
    x = torch.randn(MOST_TOKENS, 4096, device=device, dtype=torch.bfloat16)
    together = poisoned(x.new_empty(MOST_TOKENS, 1000))
    product(x, together, tiling=Tiling(32, splits, 4))
    for num_tokens in (1, 9, 33, 64):
        fewer = poisoned(together[:num_tokens])
        for rows in (32, 96, 104):
            product(x[-num_tokens:], fewer, tiling=Tiling(rows, splits, 3 if rows == 104 else 4))
            assert torch.equal(fewer, together[-num_tokens:])


def chain(products: list[tuple[MiddleProduct, MiddleProduct]], norm: Tensor, stream: Tensor) -> Tensor:
    """Layers as a model's: norm, gated product, product into the residual stream."""
    for gate_up, down in products:
        gated = stream.new_empty(stream.shape[0], gate_up.weight.shape[0] // 2)
        gate_up(rms_norm(stream, norm, 1e-5), gated, gated=True)
        down(gated, stream, residual=stream)
    return stream


@pytest.mark.parametrize(
    ("num_tokens", "width", "inner"), [(12, 1024, 3072), (32, 4096, 4096), (64, 1024, 3072), (100, 512, 1024)]
)
def test_launches_that_start_early_have_the_bits_of_launches_in_turn(
    device: torch.device, num_tokens: int, width: int, inner: int
) -> None:
    shapes = [((2 * inner, width), (width, inner))] * 12
    products = [
        tuple(MiddleProduct(torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.03) for shape in pair)
        for pair in shapes
    ]
    norm = torch.randn(width, device=device, dtype=torch.bfloat16)
    first = torch.randn(num_tokens, width, device=device, dtype=torch.bfloat16)
    expected = chain(products, norm, first.clone())  # type: ignore[arg-type]
    assert expected.isfinite().all()
    stream, begin = open_device(device.index or 0).new_stream(), first.clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
        found = chain(products, norm, begin)  # type: ignore[arg-type]
    assert make_programmatic(graph.raw_cuda_graph(), is_ours) > 0
    graph.instantiate()
    for _ in range(50):
        begin.copy_(first)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(found, expected)


def test_the_tiling_that_is_chosen_holds_no_more_memory_than_there_is(device: torch.device) -> None:
    num_sms = open_device(device.index or 0).num_sms
    for num_tokens in NUM_TOKENS:
        for out_features, in_features in WEIGHTS:
            product = Product(num_tokens, out_features, in_features)
            assert choose(product, num_sms).fits(product)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    weight = torch.randn(64, 128, device=device, dtype=torch.bfloat16)
    x, out = weight[:3].clone(), weight.new_empty(3, 64)
    product = MiddleProduct(weight)
    with pytest.raises(KernelError, match="fp16"):
        MiddleProduct(weight.float())
    with pytest.raises(KernelError, match="multiples of 8"):
        MiddleProduct(weight[:60])
    with pytest.raises(KernelError, match="bias"):
        MiddleProduct(weight, weight[0])
    with pytest.raises(KernelError, match="x is"):
        product(weight.new_empty(MOST_TOKENS + 1, 128), out)
    with pytest.raises(KernelError, match="out is"):
        product(x, out, gated=True)
    with pytest.raises(KernelError, match="no residual"):
        product(x, out[:, :32], gated=True, residual=out[:, :32])
    with pytest.raises(KernelError, match="16 bytes"):
        product(x, weight.new_empty(3, 68)[:, 4:])
    with pytest.raises(KernelError, match="x is"):
        product(x.half(), out.half())
    with pytest.raises(KernelError, match="does not cut up"):
        product(x, out, tiling=Tiling(64, 4, 4))
