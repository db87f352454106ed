"""Fixed orders must not be lost where a table learns a faster way: whatever sums over a row is the table's own."""

import inspect

import pytest

from headrace.kernels.cuda_operations import CudaOperations
from headrace.kernels.fixed_operations import FixedOperations
from headrace.kernels.table import Operations

#: Operations that compute a number, or a head, for itself, or hand over to ``FixedAttention``; and what holds weights.
KEPT = {"hold", "embedding", "rotary_table", "rotary_attention", "silu_mul", "gelu", "add", "select"}
SUMMING = sorted(
    name
    for name, member in inspect.getmembers(Operations, inspect.isfunction)
    if not name.startswith("_") and name not in KEPT
)


def test_there_are_operations_that_sum() -> None:
    assert {"linear", "pack_linear", "rms_norm", "layer_norm"} <= set(SUMMING)


@pytest.mark.parametrize("name", SUMMING)
def test_no_sum_is_computed_by_a_kernel_that_is_chosen_for_speed(name: str) -> None:
    assert getattr(FixedOperations, name) is not getattr(CudaOperations, name), (
        f"{name} would be computed as CudaOperations does it, in another order for another number of rows: "
        "give FixedOperations a way of its own"
    )
