"""Our families against transformers', on tiny random models of every kind that each family has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.tiny_models import KINDS, REFERENCE, VOCAB, make_oracle
from transformers import AutoModelForCausalLM, PreTrainedModel

from headrace.job import SamplingParams
from headrace.memory.kv_cache import KVCache
from headrace.workers.channel import Add
from headrace.workers.engine.assembly import host_engine
from headrace.workers.engine.fusion import Chunk
from headrace.workers.engine.host_steps import HostSteps
from headrace.workers.engine.loading import LoadedModel, load
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.sequence import Sequence

GREEDY = SamplingParams(16, 0, 0.0, 0, 1.0, 0.0, 0, (), (), True)


@pytest.fixture(scope="module", params=list(KINDS.values()), ids=list(KINDS))
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    return make_oracle(request.param, folder), folder


@pytest.fixture(scope="module")
def loaded(models: tuple[PreTrainedModel, Path]) -> LoadedModel:
    return load(models[1], REFERENCE, torch.float32)


def prompts(*lengths: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(3)
    return [tuple(torch.randint(0, VOCAB, (length,), generator=generator).tolist()) for length in lengths]


def logits_in_chunks(loaded: LoadedModel, prompt: tuple[int, ...], lengths: list[int]) -> torch.Tensor:
    """Compute a prompt chunk by chunk, as the runner packs it: the logits behind each chunk ``[chunks, vocab]``."""
    model, config = loaded.model, loaded.model.config
    cache = KVCache(
        num_layers=config.num_layers,
        num_pages=32,
        page_size=8,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=model.dtype,
    )
    sequence = Sequence(1, prompt, (), GREEDY, frozenset())
    # Two runs and a single page, so that chunks cross borders.
    sequence.pages.page_ids = [20, 3, 4, 5, 6, 7, 8, 22, 23, 24, 25, 26, 27, 28, 29]
    seen: list[torch.Tensor] = []
    start = 0
    with torch.inference_mode():
        for length in lengths:
            chunk = Chunk(sequence, start, length, samples=True, is_prefill=True)
            batch = HostSteps(model, cache, REFERENCE, RowState(1, 32)).pack([chunk])
            with REFERENCE.step(batch):
                logits = model.forward(batch)
            assert logits is not None
            seen.append(logits)
            start = chunk.end
    return torch.cat(seen)


@pytest.mark.parametrize("lengths", [[120], [50, 1, 1, 40, 28], [1] * 10 + [110]])
def test_prefill_logits_are_those_of_transformers_however_the_prompt_is_cut(
    models: tuple[PreTrainedModel, Path], loaded: LoadedModel, lengths: list[int]
) -> None:
    (prompt,) = prompts(120)
    with torch.inference_mode():
        expected = models[0](torch.tensor([prompt])).logits[0]
    ends = torch.tensor(lengths).cumsum(0) - 1
    assert expected.std() > 0.3, "logits that are all alike would prove nothing"
    assert (logits_in_chunks(loaded, prompt, lengths) - expected[ends]).abs().max() < 1e-4


def test_greedy_tokens_of_fused_rows_are_those_of_transformers(
    models: tuple[PreTrainedModel, Path], loaded: LoadedModel
) -> None:
    """Prompts longer than a step's budget, more rows than may run at once, and one arrival a step."""
    engine = host_engine(loaded, REFERENCE, max_rows=3, kv_tokens=300, step_tokens=24)
    rows = prompts(1, 90, 5, 33, 24, 25)
    tokens: list[list[int]] = [[] for _ in rows]
    for row, prompt in enumerate(rows):
        engine.add(Add(row, prompt, (), GREEDY))
        collect(engine.step, tokens)
    while engine.has_rows:
        collect(engine.step, tokens)
    for prompt, output in zip(rows, tokens, strict=True):
        generated = models[0].generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=GREEDY.max_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert output == generated[0, len(prompt) :].tolist()


def collect(step: Callable[[], Any], tokens: list[list[int]]) -> None:
    for row, token_id, _ in step().tokens:
        tokens[row].append(token_id)


def test_bf16_errs_at_most_twice_as_much_as_transformers_does(models: tuple[PreTrainedModel, Path]) -> None:
    (prompt,) = prompts(120)
    with torch.inference_mode():
        exact = models[0](torch.tensor([prompt])).logits[0, -1]
        oracle = AutoModelForCausalLM.from_pretrained(models[1], dtype=torch.bfloat16).eval()
        theirs = oracle(torch.tensor([prompt])).logits[0, -1].float()
    ours = logits_in_chunks(load(models[1], REFERENCE, torch.bfloat16), prompt, [70, 1, 49])[-1]
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()
