"""Our families against transformers', on tiny random models of every kind that each family has."""

from functools import partial
from pathlib import Path

import pytest
import torch
from tests.model.against_transformers import CUTS, GREEDY, assert_greedy_tokens, assert_prefill_logits, prompts
from transformers import AutoModelForCausalLM, PreTrainedModel

from headrace.memory.kv_cache import KVCache
from headrace.testing.tiny_models import KINDS, REFERENCE, make_oracle
from headrace.workers.engine.assembly import host_engine
from headrace.workers.engine.host_steps import HostSteps
from headrace.workers.engine.loading import LoadedModel, load
from headrace.workers.engine.plan import Chunk
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.sequence import Sequence


@pytest.fixture(scope="module", params=list(KINDS.values()), ids=list(KINDS))
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    return make_oracle(request.param, folder), folder


@pytest.fixture(scope="module")
def loaded(models: tuple[PreTrainedModel, Path]) -> LoadedModel:
    return load(models[1], REFERENCE, torch.float32)


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


@pytest.mark.parametrize("lengths", CUTS)
def test_prefill_logits_are_those_of_transformers_however_the_prompt_is_cut(
    models: tuple[PreTrainedModel, Path], loaded: LoadedModel, lengths: list[int]
) -> None:
    assert_prefill_logits(models[0], partial(logits_in_chunks, loaded), lengths)


def test_greedy_tokens_of_fused_rows_are_those_of_transformers(
    models: tuple[PreTrainedModel, Path], loaded: LoadedModel
) -> None:
    assert_greedy_tokens(models[0], host_engine(loaded, REFERENCE, max_rows=3, kv_tokens=300, step_tokens=24))


def test_bf16_errs_at_most_twice_as_much_as_transformers_does(models: tuple[PreTrainedModel, Path]) -> None:
    (prompt,) = prompts(120)
    with torch.inference_mode():
        exact = models[0](torch.tensor([prompt])).logits[0, -1]
        oracle = AutoModelForCausalLM.from_pretrained(models[1], dtype=torch.bfloat16).eval()
        theirs = oracle(torch.tensor([prompt])).logits[0, -1].float()
    ours = logits_in_chunks(load(models[1], REFERENCE, torch.bfloat16), prompt, [70, 1, 49])[-1]
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()
