"""Every family on the GPU against transformers: ``headrace.testing.tiny_models``, with heads that the kernels take."""

from functools import partial
from itertools import cycle
from pathlib import Path

import pytest
import torch
from tests.model.against_transformers import CUTS, assert_greedy_tokens, assert_prefill_logits, prompts
from transformers import AutoModelForCausalLM, PreTrainedModel

from headrace.testing.small_engines import engine_of, logits_in_chunks
from headrace.testing.tiny_models import KINDS, make_oracle, with_device_heads
from headrace.workers.engine.device_engine import DeviceEngine

HEAD_DIMS = (64, 80, 96, 128, 256)
CASES = {
    f"{name} heads of {head_dim}": with_device_heads(kind, head_dim)
    for (name, kind), head_dim in zip(KINDS.items(), cycle(HEAD_DIMS), strict=False)
}


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    folder = tmp_path_factory.mktemp("model")
    return make_oracle(request.param, folder), folder


@pytest.fixture(scope="module")
def model(oracle: tuple[PreTrainedModel, Path]) -> DeviceEngine:
    return engine_of(oracle[1], torch.float32, max_rows=3, kv_tokens=320, step_tokens=128, row_tokens=160)


@pytest.mark.parametrize("lengths", CUTS)
def test_prefill_logits_are_those_of_transformers_however_the_prompt_is_cut(
    oracle: tuple[PreTrainedModel, Path], model: DeviceEngine, lengths: list[int]
) -> None:
    assert_prefill_logits(oracle[0], partial(logits_in_chunks, model), lengths)


def test_greedy_tokens_of_fused_rows_are_those_of_transformers(oracle: tuple[PreTrainedModel, Path]) -> None:
    engine = engine_of(oracle[1], torch.float32, max_rows=3, kv_tokens=320, step_tokens=24).engine
    assert_greedy_tokens(oracle[0], engine)
    assert engine.num_used_pages == 0


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_errs_at_most_twice_as_much_as_transformers_does(
    oracle: tuple[PreTrainedModel, Path], device: torch.device, half: torch.dtype
) -> None:
    (prompt,) = prompts(120)
    with torch.inference_mode():
        exact = oracle[0](torch.tensor([prompt])).logits[0, -1]
        peer = AutoModelForCausalLM.from_pretrained(oracle[1], dtype=half).eval().to(device)
        theirs = peer(torch.tensor([prompt], device=device)).logits[0, -1].float().cpu()
    made = engine_of(oracle[1], half, max_rows=3, kv_tokens=320, step_tokens=72)
    ours = logits_in_chunks(made, prompt, [70, 1, 49])[-1].float().cpu()
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()
