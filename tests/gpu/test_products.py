"""Products of the table of operations and what stands beside them, whichever kernel the number of tokens chooses."""

from collections.abc import Callable

import pytest
import torch
from tests.gpu.tolerance import assert_fair, poisoned
from torch import Tensor
from torch.nn.functional import linear

from headrace.kernels import reference_fused as reference
from headrace.kernels.cuda_operations import CudaOperations

# Errors are compared over all of them together: of a few dozen numbers alone, the greatest error is chance.
NUM_TOKENS = (1, 2, 7, 8, 9, 16, 17, 40, 64, 65, 200)
# Columns of x, rows of the weight: a model's, and none that anything divides.
SHAPES = [(1024, 3072), (4096, 512), (1000, 34), (72, 1030)]
EPS = 1e-5


Normal = Callable[..., Tensor]


@pytest.fixture
def operations(device: torch.device) -> CudaOperations:
    return CudaOperations(device)


@pytest.fixture
def normal(device: torch.device, dtype: torch.dtype) -> Normal:
    """Random numbers of a shape."""
    return lambda *shape, std=1.0: torch.randn(shape, device=device, dtype=dtype) * std


def truth_and_peer(x: Tensor, weight: Tensor, bias: Tensor | None, norm: Tensor | None) -> tuple[Tensor, Tensor]:
    """A product in fp64, and as torch rounds it."""

    def product(x: Tensor, weight: Tensor, bias: Tensor | None, norm: Tensor | None) -> Tensor:
        return linear(x if norm is None else reference.rms_norm(x, norm, EPS), weight, bias)

    exact = (None if part is None else part.double() for part in (bias, norm))
    return product(x.double(), weight.double(), *exact), product(x, weight, bias, norm)


class Compared:
    """Results, what they should be, and what torch makes of them."""

    def __init__(self) -> None:
        self._results: list[tuple[Tensor, Tensor, Tensor]] = []

    def note(self, actual: Tensor, truth: Tensor, peer: Tensor) -> None:
        assert actual.isfinite().all()
        self._results.append((actual, truth, peer))

    def check(self) -> None:
        assert_fair(*(torch.cat(parts) for parts in zip(*self._results, strict=True)))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("in_features", "out_features"), SHAPES)
def test_a_norm_and_a_product_err_as_little_as_torch(
    operations: CudaOperations, normal: Normal, in_features: int, out_features: int, biased: bool
) -> None:
    weight, norm = normal(out_features, in_features, std=0.05), normal(in_features)
    bias = normal(out_features) if biased else None
    packed, compared = operations.pack_linear(weight, bias), Compared()
    for num_tokens in NUM_TOKENS:
        x = normal(num_tokens, in_features, std=3)
        truth, peer = truth_and_peer(x, weight, bias, norm)
        out = poisoned(peer)
        assert operations.norm_linear(x, norm, EPS, packed, normed=poisoned(x), out=out) is out
        assert torch.equal(operations.norm_linear(x, norm, EPS, packed), out)
        compared.note(out, truth, peer)
    compared.check()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("in_features", "inner"), SHAPES)
def test_a_norm_a_product_and_a_gate_err_as_little_as_torch(
    operations: CudaOperations, normal: Normal, in_features: int, inner: int, biased: bool
) -> None:
    pair = [normal(inner, in_features, std=0.05) for _ in range(2)]
    norm = normal(in_features)
    biases = [normal(inner) for _ in range(2)] if biased else []
    packed, compared = operations.pack_gate_up(*pair, *biases), Compared()
    weight, bias = torch.cat(pair), torch.cat(biases) if biased else None
    for num_tokens in NUM_TOKENS:
        x = normal(num_tokens, in_features, std=3)
        truth, peer = (reference.swiglu(product) for product in truth_and_peer(x, weight, bias, norm))
        out, between = poisoned(peer), poisoned(peer.new_empty(num_tokens, 2 * inner))
        operations.norm_gate_up(x, norm, EPS, packed, normed=poisoned(x), product=between, out=out)
        assert torch.equal(operations.norm_gate_up(x, norm, EPS, packed), out)
        compared.note(out, truth, peer)
    compared.check()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("in_features", "out_features"), SHAPES)
def test_a_product_added_into_the_residual_stream_errs_as_little_as_torch(
    operations: CudaOperations, normal: Normal, in_features: int, out_features: int, biased: bool
) -> None:
    weight = normal(out_features, in_features, std=0.05)
    bias = normal(out_features) if biased else None
    packed, compared = operations.pack_linear(weight, bias), Compared()
    for num_tokens in NUM_TOKENS:
        x, residual = (normal(num_tokens, size) for size in (in_features, out_features))
        truth, peer = truth_and_peer(x, weight, bias, None)
        truth, peer = truth + residual.double(), peer + residual
        operations.linear_add(x, packed, residual, product=poisoned(residual))
        compared.note(residual, truth, peer)
    compared.check()
