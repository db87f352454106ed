"""Rehearsed steps ask for all kernels that steps of a model ask for later."""

import random
from collections.abc import Iterator

import pytest
import torch
from tests.unit.engine.kernels_asked_for import PAGE_SIZE, Asked, Config, Stepping, asked

from headrace.workers.engine.models.gpt_config import GptConfig, GptJConfig
from headrace.workers.engine.models.llama_config import LlamaConfig
from headrace.workers.engine.models.rope import Rope
from headrace.workers.engine.warm_up import rehearsed_steps

__all__ = ["asked"]

MAX_ROWS, STEP_TOKENS = 256, 8192


def config(
    vocab: int, hidden: int, inner: int, heads: int, kv_heads: int, head_dim: int, *, norms: bool = False
) -> LlamaConfig:
    return LlamaConfig(
        vocab,
        hidden,
        inner,
        2,
        heads,
        kv_heads,
        head_dim,
        1e-5,
        Rope(1e4, head_dim),
        True,
        False,
        False,
        False,
        norms,
        (None, None),
        32768,
    )


MODELS: dict[str, Config] = {
    "Llama 3 8B": config(128256, 4096, 14336, 32, 8, 128),
    "Llama 3.2 1B": config(128256, 2048, 8192, 32, 8, 64),
    "Qwen2.5 7B": config(152064, 3584, 18944, 28, 4, 128),
    "Qwen2.5 0.5B": config(151936, 896, 4864, 14, 2, 64),
    "Qwen3 0.6B": config(151936, 1024, 3072, 16, 8, 128, norms=True),
    "TinyLlama": config(32000, 2048, 5632, 32, 4, 64),
    "SmolLM2 135M": config(49152, 576, 1536, 9, 3, 64),
    "GPT-2": GptConfig(50257, 768, 3072, 2, 12, 64, 1e-5, "tanh", tied=True, max_positions=8192),
    "GPT-J 6B": GptJConfig(50400, 4096, 16384, 2, 16, 256, 1e-5, "tanh", False, 8192, Rope(1e4, 64)),
}


def other_steps(seed: int) -> Iterator[tuple[int, list[int]]]:
    """Rows that decode, and prompts: every kind of length, many at random."""
    rng = random.Random(seed)
    for num_rows in (*range(1, 36), *range(36, MAX_ROWS, 11)):
        yield num_rows, []
    for num_tokens in (*range(1, 36), *range(126, 136), *range(254, 262), *range(40, 700, 23)):
        yield 0, [num_tokens]
    for _ in range(90):
        yield rng.choice((0, 1, 2, 7, 30, 100, 250)), [int(2 ** rng.uniform(0, 12.9))]
    for num_tokens in (425, 430, 440, 520, 530, 560, 8100):
        yield 1, [num_tokens]
    for _ in range(15):
        yield rng.choice((0, 3, 40)), [rng.choice((2, 7, 30))] * rng.randint(2, 200)


@pytest.mark.parametrize(
    ("asked", "kind", "models"),
    [
        ("sm_90a", "bf16", list(MODELS)),
        ("sm_90a", "fp32", ["Qwen2.5 0.5B", "Qwen3 0.6B", "GPT-2"]),
        ("sm_90a", "deterministic", ["Llama 3.2 1B", "Qwen3 0.6B", "GPT-2"]),
        ("sm_80", "bf16", ["Llama 3.2 1B", "Qwen3 0.6B", "GPT-2"]),
        ("sm_80", "fp32", ["SmolLM2 135M"]),
    ],
    indirect=["asked"],
)
def test_no_step_asks_for_a_kernel_that_was_not_rehearsed(asked: Asked, kind: str, models: list[str]) -> None:
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    for model in models:
        asked.begin()
        steps = Stepping(MODELS[model], dtype, MAX_ROWS, STEP_TOKENS, deterministic=kind == "deterministic")
        for prompts in ([4], [3]):
            steps.mixed(0, prompts, samples=prompts == [3])
        for chunks in rehearsed_steps(MAX_ROWS, STEP_TOKENS, STEP_TOKENS, PAGE_SIZE):
            steps.chunks(chunks)
        assert len(set(asked)) > 10
        asked.clear()
        late: dict[object, object] = {}
        for num_decoding, prompts in other_steps(seed=len(model)):
            if prompts:
                steps.mixed(num_decoding, prompts)
            else:
                steps.decode(num_decoding)
            # Also one that was rehearsed: it would be loaded once more.
            late = dict.fromkeys(asked, (num_decoding, prompts[:3], len(prompts))) | late
        assert not late, model
