import pytest
import torch

from headrace.errors import KernelError
from headrace.kernels.add import add


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 64), (129, 4096), (2, 3, 5), (4097, 4096), (8193, 4096)])
def test_a_sum_is_torchs_and_stays_in_place(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, y = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    expected = x + y
    add(x, y)
    assert torch.equal(x, expected)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    with pytest.raises(KernelError, match="y is"):
        add(torch.zeros(2, 3, device=device), torch.zeros(3, 2, device=device))
