import pytest
import torch
from tests.gpu.tolerance import poisoned

from headrace.kernels import reference_fused as reference
from headrace.kernels.embedding import embedding


@pytest.mark.parametrize("width", [1, 7, 96, 1000, 1024, 4096, 5000])
@pytest.mark.parametrize("num_tokens", [1, 33, 3000, 70000])
@pytest.mark.parametrize("ids", [torch.int32, torch.int64])
def test_rows_are_gathered_bit_by_bit(
    device: torch.device, dtype: torch.dtype, width: int, num_tokens: int, ids: torch.dtype
) -> None:
    if width * num_tokens > 10**8:
        num_tokens = 20000
    weight = torch.randn(501, width, device=device, dtype=dtype)
    # A shard from token 100 on: ids below it and beyond it give zeros.
    token_ids = torch.randint(0, 700, (num_tokens,), device=device, dtype=ids)
    out = poisoned(weight.new_empty(num_tokens, width))
    embedding(token_ids, weight, first_id=100, out=out)
    assert torch.equal(out, reference.embedding(token_ids, weight, first_id=100))


def test_no_id_reads_beyond_the_table(device: torch.device) -> None:
    weight = torch.randn(5, 64, device=device)
    token_ids = torch.tensor([-1, 5, 2**40, -(2**40), 4], device=device)
    out = embedding(token_ids, weight)
    assert not out[:4].any()
    assert torch.equal(out[4], weight[4])
