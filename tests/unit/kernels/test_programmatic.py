"""What an engine's graphs rely on; ``tests/gpu`` replays them."""

import re

import pytest

from headrace.kernels.build import CUDA_DIR

_ENTRY = re.compile(r'extern "C" __global__ .*?\n}\n', re.S)


@pytest.mark.parametrize("path", sorted(CUDA_DIR.glob("*.cu")), ids=lambda path: path.stem)
def test_every_kernel_waits_for_the_one_before_it_and_lets_the_next_one_start(path) -> None:  # type: ignore[no-untyped-def]
    bodies = _ENTRY.findall(path.read_text())
    assert bodies
    for body in bodies:
        assert "wait_for_earlier_kernels()" in body, body[:200]
        assert "let_next_kernel_start()" in body, body[:200]
