"""``deterministic``: in bf16 a row has its own bits: alone, fused, cut any way, and where another goes on with it."""

import random
from pathlib import Path

import pytest
import torch

from headrace.errors import ConfigurationError
from headrace.testing.churn import churn, requests, solo
from headrace.testing.plain_params import plain_params
from headrace.testing.small_engines import engine_of, logits_in_chunks
from headrace.testing.tiny_models import KINDS, make_oracle, with_device_heads
from headrace.workers.channel import Add
from headrace.workers.engine.device_engine import DeviceEngine

FAMILIES = {"qwen3 tied": 64, "gpt2": 64, "llama": 128}


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = next(name for name in KINDS if name.startswith(request.param))
    path = tmp_path_factory.mktemp("model")
    make_oracle(with_device_heads(KINDS[kind], FAMILIES[request.param]), path)
    return path


def engine(folder: Path, *, max_rows: int, kv_tokens: int, step_tokens: int, cuda_graphs: bool = True) -> DeviceEngine:
    return engine_of(folder, torch.bfloat16, max_rows=max_rows, kv_tokens=kv_tokens, step_tokens=step_tokens,
                     row_tokens=256, cuda_graphs=cuda_graphs, deterministic=True)  # fmt: skip


@torch.inference_mode()
def test_logits_have_the_same_bits_however_a_prompt_is_cut(folder: Path) -> None:
    made = engine(folder, max_rows=2, kv_tokens=600, step_tokens=200)
    prompt = tuple(torch.randint(0, 90, (150,), generator=torch.Generator().manual_seed(1)).tolist())
    ends: dict[int, torch.Tensor] = {}
    for lengths in ([150], [1] * 149 + [1], [64, 1, 1, 1, 60, 23], [16, 33, 101]):
        for end, logits in zip(
            torch.tensor(lengths).cumsum(0).tolist(), logits_in_chunks(made, prompt, lengths), strict=True
        ):
            assert torch.equal(ends.setdefault(end, logits), logits), (lengths, end)


def test_rows_under_churn_have_the_tokens_that_they_have_alone(folder: Path) -> None:
    rng = random.Random(0)
    families = requests(plain_params, rng, 200)
    # Little memory: growing rows push younger ones out again and again, which are then computed anew in other chunks.
    tight = engine(folder, max_rows=12, kv_tokens=320, step_tokens=40).engine
    tokens, cancelled = churn(tight, families, rng)
    assert tight.num_preemptions > 3
    alone = engine(folder, max_rows=1, kv_tokens=4096, step_tokens=256, cuda_graphs=False).engine
    for add in (add for family in families for add in family):
        expected = solo(alone, add)
        assert tokens[add.row] == (expected[: len(tokens[add.row])] if add.row in cancelled else expected), add


def test_a_row_goes_on_elsewhere_with_the_tokens_that_it_would_have_had(folder: Path) -> None:
    made = engine(folder, max_rows=4, kv_tokens=1024, step_tokens=64).engine
    prompt = tuple(range(40))
    for params in (plain_params(48), plain_params(48, temperature=1.0, top_p=0.9, seed=5)):
        whole = solo(made, Add(1, prompt, (), params))
        for cut in (1, 16, 33, 47):
            rest = solo(made, Add(2, prompt, tuple(whole[:cut]), params))
            assert [*whole[:cut], *rest] == whole, (params, cut)


def test_fp32_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="bfloat16 or float16"):
        engine_of(folder, torch.float32, max_rows=1, kv_tokens=64, step_tokens=16, deterministic=True)
