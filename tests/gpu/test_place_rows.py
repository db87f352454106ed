import pytest
import torch

from headrace.errors import KernelError
from headrace.kernels.place_rows import place_rows


@pytest.mark.parametrize("width", [1, 7, 96, 4096, 5000])
@pytest.mark.parametrize("beside", [0, 3, 2048])
@pytest.mark.parametrize("integers", [torch.int32, torch.int64])
def test_rows_lie_where_their_indices_say_and_nothing_else_changes(
    device: torch.device, dtype: torch.dtype, width: int, beside: int, integers: torch.dtype
) -> None:
    rows, out = (
        torch.randn(count, wide, device=device, dtype=dtype) for count, wide in ((9, width), (50, width + beside))
    )
    indices = torch.randperm(50, device=device, dtype=integers)[:9]
    expected = out.clone()
    expected[indices.long(), :width] = rows
    place_rows(rows, indices, out)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("num_rows", [2001, 3203])
@pytest.mark.parametrize("width", [7, 96])
def test_many_rows_are_placed_several_a_thread(device: torch.device, num_rows: int, width: int) -> None:
    rows, out = (torch.randn(num_rows, wide, device=device, dtype=torch.bfloat16) for wide in (width, width + 16))
    indices = torch.randperm(num_rows, device=device)
    expected = out.clone()
    expected[indices, :width] = rows
    place_rows(rows, indices, out)
    assert torch.equal(out, expected)


def test_no_rows_are_placed_and_wider_ones_refused(device: torch.device) -> None:
    rows, indices, out = (
        torch.randn(3, 8, device=device),
        torch.arange(3, device=device),
        torch.randn(5, 4, device=device),
    )
    place_rows(rows[:0], indices[:0], torch.randn(5, 8, device=device))
    with pytest.raises(KernelError, match="at least 8 wide"):
        place_rows(rows, indices, out)
