import pytest
import torch

from headrace.errors import KernelError
from headrace.kernels import reference_fused as reference
from headrace.kernels.page_copy import copy_pages


@pytest.mark.parametrize(("kv_heads", "page_size", "head_dim"), [(1, 1, 8), (3, 16, 80), (8, 64, 128)])
def test_pages_move_in_all_layers(
    device: torch.device, dtype: torch.dtype, kv_heads: int, page_size: int, head_dim: int
) -> None:
    pages = torch.randn(5, 40, 2, kv_heads, page_size, head_dim, device=device).to(dtype)
    order = torch.randperm(40, device=device)[:30].to(torch.int32)
    moves = torch.stack((order[:15], order[15:]), dim=1).contiguous()
    moves[7, 0] = -1
    expected = pages.clone()
    reference.copy_pages(expected, moves)
    copy_pages(pages, moves)
    assert torch.equal(pages, expected)


def test_one_side_of_a_page_moves_alone(device: torch.device) -> None:
    pages = torch.randn(3, 10, 2, 4, 16, 64, device=device)
    before = pages.clone()
    copy_pages(pages[:, :, 1], torch.tensor([[2, 9], [7, 0]], device=device, dtype=torch.int32))
    before[:, [9, 0], 1] = before[:, [2, 7], 1]
    assert torch.equal(pages, before)


def test_a_page_of_odd_bytes_is_refused(device: torch.device) -> None:
    with pytest.raises(KernelError, match="16 bytes"):
        copy_pages(torch.ones(1, 4, 3, device=device), torch.zeros(1, 2, device=device, dtype=torch.int32))
