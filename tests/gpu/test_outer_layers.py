"""First layers whose products are looked up, last ones that make queries of sampled tokens alone: the same tokens."""

from functools import partial
from pathlib import Path

import pytest
import torch
from tests.gpu.tolerance import poisoned

from headrace.kernels import cuda_operations
from headrace.kernels.cuda_operations import CudaOperations
from headrace.kernels.paged_batch import PagedBatch
from headrace.testing.plain_params import plain_params
from headrace.testing.small_engines import logits_in_chunks
from headrace.testing.tiny_models import KINDS, make_oracle, with_device_heads
from headrace.workers.channel import Add
from headrace.workers.engine.device_engine import DeviceEngine, DeviceLimits
from headrace.workers.engine.loading import load

FAMILIES = {"llama": 64, "qwen3": 128, "qwen2": 64, "mistral": 128}
# How many tokens must be spared, and what of the memory a table may take: plain, each alone.
WAYS = ((1 << 30, 0.0), (1, 0.0), (1 << 30, 0.02))


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = next(name for name in KINDS if name.startswith(request.param))
    path = tmp_path_factory.mktemp("model")
    make_oracle(with_device_heads(KINDS[kind], FAMILIES[request.param]), path)
    return path


def engine(folder: Path, table_fraction: float = 0.0) -> DeviceEngine:
    limits = DeviceLimits(max_rows=4, row_tokens=320, step_tokens=300, kv_tokens=1280, table_fraction=table_fraction)
    device = torch.device("cuda")
    return DeviceEngine(partial(load, folder, device=device), device, torch.float32, limits)


def tokens_of(made: DeviceEngine, adds: list[Add], late: Add) -> dict[int, list[int]]:
    """Draw all tokens; one row comes when the others decode."""
    tokens: dict[int, list[int]] = {}
    for add in adds:
        made.engine.add(add)
    for turn in range(100):
        if turn == 5:
            made.engine.add(late)
        if not made.engine.has_rows:
            break
        for row, token, _ in made.engine.step().tokens:
            tokens.setdefault(row, []).append(token)
    return tokens


@pytest.mark.parametrize("lengths", [[250], [100, 1, 149], [16, 200, 34]])
def test_logits_behind_a_chunk_are_those_of_all_queries(
    monkeypatch: pytest.MonkeyPatch, folder: Path, lengths: list[int]
) -> None:
    prompt = tuple(torch.randint(0, 90, (250,), generator=torch.Generator().manual_seed(1)).tolist())
    found = []
    for least, table_fraction in WAYS:
        monkeypatch.setattr(cuda_operations, "LEAST_TO_SPARE", least)
        found.append(logits_in_chunks(engine(folder, table_fraction), prompt, lengths))
    assert torch.allclose(found[0], found[1], atol=1e-4, rtol=1e-4)
    assert torch.allclose(found[0], found[2], atol=1e-4, rtol=1e-4)


def test_rows_that_decode_beside_prompts_have_the_tokens_that_they_would_have_had(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    generator = torch.Generator().manual_seed(2)
    prompts = [tuple(torch.randint(0, 90, (length,), generator=generator).tolist()) for length in (40, 7, 120, 200)]
    adds = [Add(row, prompt, (), plain_params(12)) for row, prompt in enumerate(prompts)]
    found = []
    for least, table_fraction in WAYS:
        monkeypatch.setattr(cuda_operations, "LEAST_TO_SPARE", least)
        found.append(tokens_of(engine(folder, table_fraction), adds[:3], adds[3]))
    assert found[0] == found[1] == found[2]
    assert [len(found[1][row]) for row in range(4)] == [12] * 4


@pytest.mark.parametrize("sampled", [[], [4999], [0, 17, 2500, 4998]])
def test_other_features_are_of_all_tokens_and_the_first_ones_of_sampled_ones(
    device: torch.device, sampled: list[int]
) -> None:
    operations = CudaOperations(device)
    weight, norm = (torch.randn(shape, device=device).bfloat16() * 0.05 for shape in ((768, 512), (512,)))
    x = torch.randn(5000, 512, device=device).bfloat16()
    packed = operations.pack_linear(weight, None)
    wanted = torch.tensor(sampled, dtype=torch.int32, device=device)
    nothing = torch.empty(0, dtype=torch.int32, device=device)
    batch = PagedBatch(torch.zeros(5000, dtype=torch.int64, device=device), nothing, wanted, nothing, None, None, ())
    plain = operations.norm_linear(x, norm, 1e-5, packed)
    out = poisoned(plain)
    with operations.step(batch):
        assert operations.norm_linear_for_sampled(x, norm, 1e-5, packed, 512, out=out) is out
    assert torch.allclose(out[:, 512:].float(), plain[:, 512:].float(), atol=1e-2, rtol=1e-2)
    assert torch.allclose(out[wanted.long()].float(), plain[wanted.long()].float(), atol=1e-2, rtol=1e-2)
    others = torch.ones(5000, dtype=torch.bool, device=device)
    others[wanted.long()] = False
    assert out[others, :512].isnan().all()  # nobody has computed them


def test_memory_for_tables_is_spent_once(device: torch.device) -> None:
    operations = CudaOperations(device, table_bytes=100)
    taken = [operations.take_spare_bytes(num_bytes) for num_bytes in (101, 60, 60, 40, 1)]
    assert taken == [False, True, False, True, False]
