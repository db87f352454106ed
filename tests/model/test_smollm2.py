"""The engine on the real SmolLM2-135M-Instruct, pulled into the user's cache once; without it these tests fail."""

from dataclasses import replace

import pytest
import torch
from rich.console import Console
from transformers import LlamaForCausalLM

from headrace.job import SamplingParams
from headrace.testing.tiny_models import REFERENCE
from headrace.workers.channel import Add
from headrace.workers.engine.assembly import host_engine
from headrace.workers.engine.loading import LoadedModel, load
from headrace.workers.model_store.store import ModelFolder, default_cache_dir, pull

# "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n"
PROMPT = (1, 4093, 198, 1780, 314, 9354, 47, 2, 198, 1, 520, 9531, 198)
GREEDY = SamplingParams(24, 0, 0.0, 0, 1.0, 0.0, 0, (), (), True)


def sampled(seed: int) -> SamplingParams:
    return SamplingParams(12, 0, 0.8, 0, 0.95, 0.0, seed, (), (), True)


@pytest.fixture(scope="module")
def folder() -> ModelFolder:
    torch.set_num_threads(1)
    return pull("smollm2-135m", default_cache_dir(), Console(stderr=True))


@pytest.fixture(scope="module")
def loaded(folder: ModelFolder) -> LoadedModel:
    return load(folder.path, REFERENCE, torch.float32)


def run(loaded: LoadedModel, *adds: Add) -> dict[int, list[int]]:
    engine = host_engine(loaded, REFERENCE, max_rows=8, kv_tokens=1024, step_tokens=16)
    tokens: dict[int, list[int]] = {add.row: [] for add in adds}
    for add in adds:
        engine.add(add)
    while engine.has_rows:
        for row, token_id, _ in engine.step().tokens:
            tokens[row].append(token_id)
    return tokens


def test_greedy_tokens_are_those_of_transformers(folder: ModelFolder, loaded: LoadedModel) -> None:
    oracle = LlamaForCausalLM.from_pretrained(folder.path, dtype=torch.float32).eval()
    generated = oracle.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
        max_new_tokens=GREEDY.max_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert run(loaded, Add(1, PROMPT, (), GREEDY))[1] == generated[0, len(PROMPT) :].tolist()


def test_fused_and_resumed_rows_get_the_tokens_they_get_alone_and_unbroken(loaded: LoadedModel) -> None:
    adds = [
        Add(0, PROMPT * 3, (), replace(GREEDY, max_tokens=12)),
        *(Add(seed, PROMPT[seed:], (), sampled(seed)) for seed in (1, 2)),
    ]
    alone = {add.row: run(loaded, add)[add.row] for add in adds}
    assert len({tuple(tokens) for tokens in alone.values()}) == len(adds)
    assert run(loaded, *adds) == alone
    resumed = [Add(add.row, add.prompt_ids, tuple(alone[add.row][: 4 + add.row]), add.params) for add in adds]
    assert run(loaded, *resumed) == {row: tokens[4 + row :] for row, tokens in alone.items()}
