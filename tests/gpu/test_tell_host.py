import pytest
import torch

from headrace.errors import KernelError
from headrace.kernels.tell_host import tell_host


@pytest.mark.parametrize("num_rows", [1, 8, 700])
def test_the_host_finds_a_steps_tokens_in_its_own_memory_turn_by_turn(device: torch.device, num_rows: int) -> None:
    told = torch.full((3, 700), -7, dtype=torch.int32, pin_memory=True)
    turn = torch.ones(1, dtype=torch.int32, device=device)
    for at in (1, 2, 0, 1):
        token_ids = torch.randint(0, 2**31 - 1, (num_rows,), device=device)
        valid = torch.rand(num_rows, device=device) < 0.8
        before = told.clone()
        tell_host(told, turn, token_ids, valid)
        torch.cuda.synchronize()
        before[at, :num_rows] = token_ids.where(valid, -1).int().cpu()
        assert torch.equal(told, before)


def test_memory_that_the_gpu_does_not_reach_is_refused(device: torch.device) -> None:
    token_ids, valid = torch.zeros(1, dtype=torch.int64, device=device), torch.ones(1, dtype=torch.bool, device=device)
    with pytest.raises(KernelError, match="wants a tensor on"):
        tell_host(
            torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32, device=device), token_ids, valid
        )
