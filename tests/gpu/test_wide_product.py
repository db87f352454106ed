"""Products of 129 and more tokens: right at every border and however they are cut up, from graphs, and where taken."""

import pytest
import torch
from tests.gpu.tolerance import assert_fair, normal, poisoned
from torch import Tensor
from torch.nn import functional

from headrace.errors import KernelError
from headrace.kernels import wide_choice
from headrace.kernels.activation import swiglu
from headrace.kernels.cuda_operations import CudaOperations
from headrace.kernels.device import open_device
from headrace.kernels.launch import is_ours
from headrace.kernels.programmatic import make_programmatic
from headrace.kernels.rms_norm import rms_norm
from headrace.kernels.thin_choice import Product
from headrace.kernels.wide_choice import MANY, MEASURED, MOST_TOKENS, Tiling
from headrace.kernels.wide_product import WideProduct

# Rows and columns of the weight: fewer than a tile and a panel, no multiples of either, and several tiles a block.
WEIGHTS = [(8, 72), (1032, 1000), (5000, 520), (17000, 264)]
NUM_TOKENS = [1, 64, 129, 130, 191, 192, 193, 255, 256]
PLAIN = Tiling(64, 2, 2, 1, 4)
OVERLAPPING = Tiling(256, 2, 2, 1, 4, band=2, overlaps=True)
ODD_OVERLAPPING = Tiling(224, 2, 2, 1, 5, overlaps=True)
#: Shared tokens and columns, alone and together, in blocks of one, two and three groups.
TILINGS = [
    ODD_OVERLAPPING,
    Tiling(224, 2, 2, 1, 5),
    Tiling(112, 2, 2, 1, 3),
    Tiling(144, 2, 2, 4, 4),
    Tiling(144, 2, 2, 2, 6),
    Tiling(16, 2, 2, 1, 2),
    Tiling(96, 1, 4, 2, 3),
    Tiling(224, 3, 1, 1, 4),
    Tiling(48, 3, 1, 1, 3),
    Tiling(144, 3, 1, 4, 2),
]


@pytest.fixture(autouse=True)
def _hopper(device: torch.device) -> None:
    if not open_device(device.index).arch.startswith("sm_9"):
        pytest.skip("wide products need Hopper's products of four warps")


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


def check(num_tokens: int, weight: Tensor, *, full: bool, tiling: Tiling) -> None:
    out_features, in_features = weight.shape
    x = normal(num_tokens, in_features, device=weight.device, dtype=weight.dtype)
    bias = torch.randn(out_features, device=weight.device, dtype=weight.dtype) if full else None
    residual = normal(num_tokens, out_features, device=weight.device, dtype=weight.dtype) if full else None
    out = poisoned(x.new_empty(num_tokens, out_features))
    WideProduct(weight, bias)(x, out, residual=residual, tiling=tiling)
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
        check(num_tokens, weight, full=num_tokens % 2 == 0, tiling=PLAIN)


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_products_are_right_however_they_are_cut(device: torch.device, tiling: Tiling) -> None:
    for out_features, in_features in ((8, 520), (1000, 2056), (17000, 1024)):
        weight = normal(out_features, in_features, device=device, dtype=torch.bfloat16)
        for num_tokens in (1, 130, 192, 256):
            if tiling.fits(Product(num_tokens, out_features, in_features)):
                check(num_tokens, weight, full=True, tiling=tiling)


@pytest.mark.parametrize(
    "tiling",
    [
        Tiling(256, 2, 2, 1, 4, band=2),
        Tiling(64, 2, 1, 1, 3, band=3),
        OVERLAPPING,
        Tiling(64, 2, 1, 1, 3, band=3, overlaps=True),
    ],
    ids=str,
)
def test_products_of_many_tokens_are_right_at_every_border(device: torch.device, tiling: Tiling) -> None:
    for out_features, in_features in ((8, 584), (5000, 264), (1040, 4096)):
        weight = normal(out_features, in_features, device=device, dtype=torch.bfloat16)
        for num_tokens in (257, 512, 1000, 3001):
            if tiling.fits(Product(num_tokens, out_features, in_features)):
                check(num_tokens, weight, full=True, tiling=tiling)


@pytest.mark.parametrize(
    ("weight", "least", "most", "tiling"),
    [(weight, *measured) for weight, several in MEASURED.items() for measured in several],
)
def test_what_is_chosen_is_right_on_its_own_weight(
    device: torch.device, weight: tuple[int, int], least: int, most: int, tiling: Tiling
) -> None:
    made = torch.randn(weight, device=device, dtype=torch.bfloat16)
    for num_tokens in (least, most):
        x = torch.randn(num_tokens, weight[1], device=device, dtype=torch.bfloat16)
        out, peer = poisoned(x.new_empty(num_tokens, weight[0])), functional.linear(x, made)
        WideProduct(made)(x, out)
        assert_fair(out, functional.linear(x.float(), made.float()), peer)


@pytest.mark.parametrize("weight", MANY, ids=str)
def test_gates_of_many_tokens_are_right_on_their_own_weight(device: torch.device, weight: tuple[int, int]) -> None:
    made = normal(*weight, device=device, dtype=torch.bfloat16)
    for least, _ in MANY[weight]:
        x = torch.randn(2 * least - 1, weight[1], device=device, dtype=torch.bfloat16)
        out = poisoned(x.new_empty(x.shape[0], weight[0] // 2))
        WideProduct(made)(x, out, gated=True)
        sums = functional.linear(x.float(), made.float())
        peer = swiglu(functional.linear(x, made), layout="alternating")
        assert_fair(out, functional.silu(sums[:, ::2]) * sums[:, 1::2], peer)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("tiling", [PLAIN, Tiling(96, 3, 1, 2, 3), OVERLAPPING, ODD_OVERLAPPING], ids=str)
def test_joined_products_have_the_bits_of_single_operations(
    device: torch.device, dtype: torch.dtype, tiling: Tiling, biased: bool
) -> None:
    weight = normal(3088, 1000, device=device, dtype=dtype)
    bias = torch.randn(3088, device=device, dtype=dtype) if biased else None
    product = WideProduct(weight, bias)
    for num_tokens in (131, 192):
        x = torch.randn(num_tokens, 1000, device=device, dtype=dtype)
        residual = torch.randn(num_tokens, 3088, device=device, dtype=dtype)
        plain, joined = poisoned(residual), poisoned(residual)
        product(x, plain, tiling=tiling)
        product(x, joined, residual=residual, tiling=tiling)
        assert torch.equal(joined, plain + residual)
        product(x, residual, residual=residual, tiling=tiling)
        assert torch.equal(residual, joined)
        gated = poisoned(residual[:, :1544].contiguous())
        product(x, gated, gated=True, tiling=tiling)
        assert torch.equal(gated, swiglu(plain, layout="alternating"))


def test_a_token_has_the_same_bits_alone_and_among_others_and_in_any_tile(device: torch.device) -> None:
    product = WideProduct(torch.randn(1000, 4096, device=device, dtype=torch.bfloat16))
    x = torch.randn(MOST_TOKENS, 4096, device=device, dtype=torch.bfloat16)
    together = poisoned(x.new_empty(MOST_TOKENS, 1000))
    product(x, together, tiling=PLAIN)
    for num_tokens in (1, 129, 192):
        fewer = poisoned(together[:num_tokens])
        for tiling in (ODD_OVERLAPPING, Tiling(96, 1, 4, 1, 4), Tiling(48, 3, 1, 1, 3)):
            product(x[-num_tokens:], fewer, tiling=tiling)
            assert torch.equal(fewer, together[-num_tokens:])


def chain(
    products: list[tuple[WideProduct, WideProduct]], norm: Tensor, stream: Tensor, tilings: list[Tiling]
) -> Tensor:
    """Layers as a model's: norm, gated product, product into the residual stream."""
    for gate_up, down in products:
        gated = stream.new_empty(stream.shape[0], gate_up.weight.shape[0] // 2)
        gate_up(rms_norm(stream, norm, 1e-5), gated, gated=True, tiling=tilings[0])
        down(gated, stream, residual=stream, tiling=tilings[1])
    return stream


@pytest.mark.parametrize(
    ("num_tokens", "width", "inner", "tilings"),
    [
        (256, 1024, 14336, [ODD_OVERLAPPING, Tiling(144, 2, 2, 2, 6)]),
        (150, 1024, 3072, [Tiling(224, 3, 1, 1, 4), Tiling(128, 3, 1, 4, 3)]),
        (200, 512, 3072, [Tiling(96, 2, 2, 1, 3), Tiling(16, 2, 2, 1, 4)]),
        (1500, 1024, 3072, [Tiling(256, 2, 2, 1, 4, band=4), Tiling(256, 2, 2, 1, 4, band=4)]),
        (1500, 1024, 3072, [OVERLAPPING, OVERLAPPING]),
    ],
)
def test_launches_that_start_early_have_the_bits_of_launches_in_turn(
    device: torch.device, num_tokens: int, width: int, inner: int, tilings: list[Tiling]
) -> None:
    shapes = [((2 * inner, width), (width, inner))] * 8
    products = [
        tuple(WideProduct(torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.03) for shape in pair)
        for pair in shapes
    ]
    norm = torch.randn(width, device=device, dtype=torch.bfloat16)
    first = torch.randn(num_tokens, width, device=device, dtype=torch.bfloat16)
    expected = chain(products, norm, first.clone(), tilings)  # type: ignore[arg-type]
    assert expected.isfinite().all()
    stream, begin = open_device(device.index or 0).new_stream(), first.clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
        found = chain(products, norm, begin, tilings)  # type: ignore[arg-type]
    assert make_programmatic(graph.raw_cuda_graph(), is_ours) > 0
    graph.instantiate()
    for _ in range(50):
        begin.copy_(first)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(found, expected)
        with torch.cuda.stream(stream), open_device(device.index or 0).launching_early():
            one_by_one = chain(products, norm, first.clone(), tilings)  # type: ignore[arg-type]
        torch.cuda.synchronize()
        assert torch.equal(one_by_one, expected)


def test_the_table_of_operations_takes_it_where_it_was_measured_to_win(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Product] = []

    def choose(product: Product) -> Tiling | None:
        taken.append(product)
        return PLAIN if product.num_tokens > 200 else None

    monkeypatch.setattr(wide_choice, "choose", choose)
    monkeypatch.setattr("headrace.kernels.wide_product.choose", choose)
    operations = CudaOperations(device)
    norm = torch.randn(512, device=device).bfloat16()
    gate, up = (torch.randn(1024, 512, device=device).bfloat16() / 16 for _ in range(2))
    gate_up, down = operations.pack_gate_up(gate, up), operations.pack_linear(torch.randn_like(gate.T) / 16, None)
    for num_tokens in (200, 201, 257):
        x = torch.randn(num_tokens, 512, device=device).bfloat16()
        stream = x.clone()
        gated = operations.norm_gate_up(x, norm, 1e-5, gate_up)
        operations.linear_add(gated, down, stream)
        normed = rms_norm(x, norm, 1e-5)
        both = [functional.linear(normed.double(), weight.double()) for weight in (gate, up)]
        truth = functional.silu(both[0]) * both[1]
        peer = functional.silu(functional.linear(normed, gate)) * functional.linear(normed, up)
        assert_fair(gated, truth, peer)
        summed = x.double() + functional.linear(gated.double(), down.weight.double())
        assert_fair(stream, summed, x + functional.linear(gated, down.weight))
    asked = {(product.num_tokens, product.out_features) for product in taken}
    assert asked == {(200, 2048), (200, 512), (201, 2048), (201, 512), (257, 2048)}, "gates of many tokens, and no sums"


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    weight = torch.randn(64, 128, device=device, dtype=torch.bfloat16)
    x, out = weight[:3].clone(), weight.new_empty(3, 64)
    product = WideProduct(weight)
    with pytest.raises(KernelError, match="fp16"):
        WideProduct(weight.float())
    with pytest.raises(KernelError, match="multiples of 8"):
        WideProduct(weight[:60])
    with pytest.raises(KernelError, match="bias"):
        WideProduct(weight, weight[0])
    with pytest.raises(KernelError, match="x is"):
        product(x[:0], out[:0])
    with pytest.raises(KernelError, match="out is"):
        product(x, out, gated=True)
    with pytest.raises(KernelError, match="no residual"):
        product(x, out[:, :32], gated=True, residual=out[:, :32])
    with pytest.raises(KernelError, match="16 bytes"):
        product(x, weight.new_empty(3, 68)[:, 4:], tiling=PLAIN)
    with pytest.raises(KernelError, match="x is"):
        product(x.half(), out.half())
    with pytest.raises(KernelError, match="does not cut up"):
        product(x, out, tiling=Tiling(64, 2, 2, 4, 4))
    with pytest.raises(KernelError, match="does not cut up"):
        product(x, out)
