"""How a sum is shared out, without a GPU."""

import pytest

from headrace.kernels import add
from headrace.kernels.add import _blocks as blocks


@pytest.mark.parametrize(
    ("num_vecs", "num_bytes", "arch", "expected"),
    [
        (1 << 15, 1 << 19, "sm_90a", "_FEW"),
        ((1 << 15) + 1, (1 << 19) + 16, "sm_90a", "_SOME"),
        ((1 << 22) - 1, (1 << 26) - 16, "sm_90a", "_SOME"),
        (1 << 22, 1 << 26, "sm_90a", "_MANY"),
        (1 << 25, 1 << 26, "sm_90a", "_MANY"),
        ((1 << 22) + 1, 1 << 23, "sm_90a", "_SOME"),
        (1 << 22, 1 << 26, "sm_80", "_SOME"),
        (1 << 22, 1 << 26, "sm_120a", "_SOME"),
    ],
)
def test_a_sum_has_the_blocks_that_were_measured_for_its_size(
    num_vecs: int, num_bytes: int, arch: str, expected: str
) -> None:
    assert blocks(num_vecs, num_bytes, arch) is getattr(add, expected)


def test_six_blocks_of_a_large_sum_are_all_that_its_shared_memory_lets_run_at_once() -> None:
    a_block, shared = add._MANY.shared.most_bytes + 1024, 64 << 10
    assert add._MANY.shared.percent == round(100 * shared / (228 << 10))
    assert shared // a_block == 6
    assert shared // a_block * add._MANY.threads == 1536
