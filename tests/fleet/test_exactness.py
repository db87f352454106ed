"""Greedy tokens through the whole fleet are those of transformers, alone and fused."""

import random
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from headrace.testing.chaos import submit
from headrace.testing.collector import Collector
from headrace.testing.fleet import Fleet
from headrace.workers.model_store.store import ModelFolder
from headrace.workers.text.tokenizer import Tokenizer

NUM_TOKENS = 32
#: Two tokens this close in transformers' own logits may come out in either order.
NEAR_TIE = 1e-3
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in a village by the sea,",
    "1, 1, 2, 3, 5, 8,",
    "Q: Why is the sky blue?\nA:",
    "The three laws of thermodynamics are these: first,",
    "Dear Sir or Madam,",
    "水は",
)


@pytest.fixture(scope="module")
def oracle(model: ModelFolder) -> torch.nn.Module:
    loaded: torch.nn.Module = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    return loaded.eval()


@torch.inference_mode()
def assert_greedy(oracle: torch.nn.Module, prompt_ids: tuple[int, ...], output_ids: tuple[int, ...]) -> None:
    """Every token is transformers' choice behind the tokens before it, but for near ties."""
    logits = oracle(torch.tensor([[*prompt_ids, *output_ids]])).logits[0, len(prompt_ids) - 1 : -1]
    best = logits.max(dim=-1).values
    chosen = logits.gather(1, torch.tensor(output_ids)[:, None])[:, 0]
    assert bool((best - chosen < NEAR_TIE).all()), (best - chosen).tolist()


def test_greedy_tokens_equal_those_of_transformers(fleet: Fleet, model: ModelFolder, oracle: torch.nn.Module) -> None:
    tokenizer = Tokenizer.from_folder(model.path)
    prompt_ids = tokenizer.encode_batch(PROMPTS, add_special_tokens=True)
    requests: list[dict[str, object]] = [
        {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True} for prompt in PROMPTS
    ]
    alone: list[tuple[int, ...]] = []
    for i, request in enumerate(requests):
        ids = submit(fleet, f"alone-{i}", [request])
        collector = Collector(fleet.broker, ids)
        collector.wait(60)
        alone.append(tuple(collector.transcripts[ids[0]].ids))
    order = list(range(len(PROMPTS)))
    random.Random(5).shuffle(order)
    names = {}
    for i in order:
        (names[i],) = submit(fleet, f"fused-{i}", [requests[i]])
        time.sleep(0.03)
    collector = Collector(fleet.broker, names.values())
    collector.wait(120)
    for i, ids_of_prompt in enumerate(prompt_ids):
        fused = tuple(collector.transcripts[names[i]].ids)
        assert len(alone[i]) == len(fused) == NUM_TOKENS
        assert_greedy(oracle, ids_of_prompt, alone[i])
        if fused != alone[i]:
            assert_greedy(oracle, ids_of_prompt, fused)
