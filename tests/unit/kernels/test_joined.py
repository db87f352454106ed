"""Operations that are several in one, against their formulas and against the single operations."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from headrace.kernels.planned import PlannedOperations
from headrace.kernels.ragged import Ragged
from headrace.kernels.reference import ReferenceOperations
from headrace.kernels.step_trace import Result
from headrace.kernels.table import Linear
from headrace.memory.planner import Buffer, lay_out

REFERENCE = ReferenceOperations()
TOKENS, HIDDEN, INNER, EPS = 5, 24, 40, 1e-5
SOME = 16  # features of HIDDEN


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


def normed(x: Tensor, weight: Tensor) -> Tensor:
    x = x.double()
    return x / (x.square().mean(dim=-1, keepdim=True) + EPS).sqrt() * weight


def biases(biased: bool, *sizes: int) -> list[Tensor]:
    return [torch.randn(size) for size in sizes] if biased else []


@pytest.mark.parametrize("biased", [False, True])
def test_a_norm_and_a_product_are_right_together(biased: bool) -> None:
    x, scale, weight = torch.randn(TOKENS, HIDDEN), torch.randn(HIDDEN), torch.randn(INNER, HIDDEN)
    bias = torch.randn(INNER) if biased else None
    joined = REFERENCE.norm_linear(x, scale, EPS, REFERENCE.pack_linear(weight, bias))
    expected = normed(x, scale) @ weight.double().T + (0 if bias is None else bias)
    assert torch.allclose(joined.double(), expected, atol=1e-4)


@pytest.mark.parametrize("biased", [False, True])
def test_a_gate_is_silu_of_the_gate_s_rows_times_up_s(biased: bool) -> None:
    x, scale, gate, up = (torch.randn(shape) for shape in ((TOKENS, HIDDEN), (HIDDEN,), *[(INNER, HIDDEN)] * 2))
    extra = biases(biased, INNER, INNER)
    joined = REFERENCE.norm_gate_up(x, scale, EPS, REFERENCE.pack_gate_up(gate, up, *extra))
    first, second = (normed(x, scale) @ w.double().T for w in (gate, up))
    if biased:
        first, second = first + extra[0], second + extra[1]
    assert torch.allclose(joined.double(), silu(first) * second, atol=1e-3)


@pytest.mark.parametrize("biased", [False, True])
def test_a_product_is_added_into_the_residual_stream(biased: bool) -> None:
    x, weight, residual = torch.randn(TOKENS, HIDDEN), torch.randn(INNER, HIDDEN), torch.randn(TOKENS, INNER)
    bias = torch.randn(INNER) if biased else None
    expected = residual.double() + x.double() @ weight.double().T + (0 if bias is None else bias)
    REFERENCE.linear_add(x, REFERENCE.pack_linear(weight, bias), residual)
    assert torch.allclose(residual.double(), expected, atol=1e-4)


class Stack:
    """A model of joined operations alone, all of whose layers are one."""

    def __init__(self, operations: PlannedOperations[Ragged] | ReferenceOperations) -> None:
        self._ops = operations
        self._table = torch.randn(50, HIDDEN)
        self._norm = torch.randn(HIDDEN)
        self._gate_up = operations.pack_gate_up(*torch.randn(2, INNER, HIDDEN))
        self._down = operations.pack_linear(torch.randn(HIDDEN, INNER), None)
        self._head = operations.pack_linear(torch.randn(50, HIDDEN), None)
        self._mix = operations.pack_linear(torch.randn(HIDDEN, HIDDEN), None)

    def forward(self, batch: Ragged) -> Tensor:
        ops = self._ops
        residual = ops.embedding(batch.token_ids, self._table)
        for _ in range(3):
            gated = ops.norm_gate_up(residual, self._norm, EPS, self._gate_up)
            ops.linear_add(gated, self._down, residual)
        mixed = ops.norm_linear_for_sampled(residual, self._norm, EPS, self._mix, SOME)
        ops.add(residual, mixed)
        return ops.norm_linear(ops.select(residual, batch.sampled), self._norm, EPS, self._head)


class GatingWhileMultiplying(ReferenceOperations):
    """Has gates ready before the last product is, and never writes the products, as a kernel that joins the two."""

    def norm_gate_up(
        self,
        x: Tensor,
        weight: Tensor,
        eps: float,
        gate_up: Linear,
        *,
        normed: Tensor | None = None,
        product: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        normed = self.rms_norm(x, weight, eps, out=normed)
        inner = gate_up.weight.shape[0] // 2
        out = x.new_empty(x.shape[0], inner) if out is None else out.fill_(torch.nan)
        return out.copy_(self.silu_mul(self.linear(normed, gate_up)))


class SparingOthers(ReferenceOperations):
    """Computes what is wanted of sampled tokens alone by itself, in the rooms that it has for that."""

    def norm_linear_for_sampled(
        self,
        x: Tensor,
        weight: Tensor,
        eps: float,
        linear: Linear,
        num_features: int,
        *,
        normed: Tensor | None = None,
        picked: Tensor | None = None,
        product: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        sampled, normed = self._batch.sampled, self.rms_norm(x, weight, eps, out=normed)
        out = x.new_empty(x.shape[0], linear.weight.shape[0]) if out is None else out
        out[:, num_features:] = self.linear(normed, linear)[:, num_features:]
        picked = self.select(normed, sampled, out=picked)
        some = self.pack_linear(linear.weight[:num_features], None)
        out[sampled, :num_features] = self.linear(picked, some, out=product)
        return out


class Memory:
    """Lays results out by their lifetimes, over memory full of NaN."""

    def __init__(self) -> None:
        self.num_placed = 0

    def place(self, lengths: tuple[int, int], results_of: Callable[[], Sequence[Result]]) -> Sequence[Tensor]:
        results = results_of()
        self.num_placed += len(results)
        plan = lay_out([Buffer(r.first_op, r.last_op, 4 * torch.Size(r.shape).numel()) for r in results])
        chunks = [torch.full((-(-num_bytes // 4),), torch.nan) for num_bytes in plan.chunk_bytes]
        placed = []
        for place, result in zip(plan.places, results, strict=True):
            first, numel = place.offset // 4, torch.Size(result.shape).numel()
            placed.append(chunks[place.chunk][first : first + numel].view(result.shape))
        return placed


@pytest.mark.parametrize(
    "table", [REFERENCE, GatingWhileMultiplying(), SparingOthers()], ids=lambda table: type(table).__name__
)
def test_what_lies_between_joined_operations_has_a_place_of_its_own(
    monkeypatch: pytest.MonkeyPatch, table: ReferenceOperations
) -> None:
    # Without oneDNN all products write where they are told.
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    nothing = torch.empty(0, dtype=torch.int64)
    batch = Ragged(torch.arange(TOKENS), nothing, torch.tensor([1, 4]), nothing, (), ())
    torch.manual_seed(1)
    expected = Stack(REFERENCE).forward(batch)
    memory, operations = Memory(), PlannedOperations(table)
    torch.manual_seed(1)
    model = Stack(operations)
    operations.place_in(memory.place)
    for _ in range(2):  # traced, then planned
        with operations.step(batch):
            logits = model.forward(batch).clone()
    assert memory.num_placed == 1 + 3 * (3 + 1) + 4 + 1 + 2
    assert torch.allclose(logits, expected, rtol=1e-5)
