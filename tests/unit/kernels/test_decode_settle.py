"""How decode attention puts an item's parts together: its CUDA source on fibers."""

from pathlib import Path

import pytest
import torch
from tests.unit.kernels.emulation.build import build_decode_settle, compiler, pointer


@pytest.mark.parametrize(
    ("head_dim", "group", "warps"), [(64, 1, 1), (80, 9, 4), (96, 8, 4), (128, 4, 4), (128, 16, 2), (256, 4, 4)]
)
def test_an_items_parts_come_to_what_they_would_be_in_one_sum(
    head_dim: int, group: int, warps: int, tmp_path: Path
) -> None:
    if compiler() is None:
        pytest.fail("the kernels' sources are run on this machine's CPU, which takes g++: install it")
    torch.manual_seed(0)
    library = build_decode_settle(
        {"DTYPE": "__half", "IS_FP32": 0, "HEAD_DIM": head_dim, "GROUP": group, "WARPS": warps}, tmp_path
    )
    # A round of parts alone, and rounds before the last one: whole ones, and one of a single part.
    for num_parts in (1, 2, 15, 16, 24, 41):
        sums = torch.randn(num_parts, warps, group, head_dim)
        mosts, weights = torch.randn(num_parts, warps, group) * 4, torch.rand(num_parts, warps, group) + 1
        factors = (mosts - mosts.amax(dim=(0, 1))).double().exp2()
        expected = (factors[..., None] * sums).sum(dim=(0, 1)) / (factors * weights).sum(dim=(0, 1))[..., None]
        plan = torch.zeros(1 + 2 * num_parts, 4, dtype=torch.int32)
        plan[0] = torch.tensor([1, 1, 0, 1])  # shares of a tile, each with a slot
        for part in range(num_parts):
            plan[1 + 2 * part] = torch.tensor([0, 0, part, 1])
            plan[2 + 2 * part, 0] = 16 * num_parts
        out, tickets = torch.full((group, head_dim), torch.nan).half(), torch.zeros(1 + num_parts, dtype=torch.int32)
        slots = torch.full((num_parts, -(-group * (head_dim + 2) // 4) * 4), torch.nan)
        library.emulate_settle(num_parts, *map(pointer, (out, plan, slots, tickets, sums, mosts, weights)))
        torch.testing.assert_close(out.double(), expected, atol=2e-3, rtol=2e-3)
        assert not tickets.any(), "tickets are as they were"
