"""The forms in which folders hold the same model: in one file or many, under today's names or the first ones."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.against_transformers import prompts
from tests.model.test_families import logits_in_chunks

from headrace.errors import ModelError
from headrace.testing.tiny_models import KINDS, REFERENCE, make_oracle
from headrace.workers.engine.loading import load


@pytest.mark.parametrize("name", ["mistral with a window", "qwen2 untied", "qwen3 tied", "gpt2 tied", "gptj untied"])
def test_a_model_in_shards_computes_what_it_does_in_one_file(name: str, tmp_path: Path) -> None:
    oracle = make_oracle(KINDS[name], tmp_path)
    (prompt,) = prompts(40)
    whole = logits_in_chunks(load(tmp_path, REFERENCE, torch.float32), prompt, [40])
    (tmp_path / "model.safetensors").unlink()
    oracle.save_pretrained(tmp_path, max_shard_size="60KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert torch.equal(logits_in_chunks(load(tmp_path, REFERENCE, torch.float32), prompt, [40]), whole)
    shards[1].unlink()
    with pytest.raises(ModelError, match=shards[1].name):
        load(tmp_path, REFERENCE, torch.float32)


def test_gpt2_is_read_under_the_names_of_its_first_checkpoints(tmp_path: Path) -> None:
    make_oracle(KINDS["gpt2 tied"], tmp_path)
    (prompt,) = prompts(40)
    file = tmp_path / "model.safetensors"
    expected = logits_in_chunks(load(tmp_path, REFERENCE, torch.float32), prompt, [40])
    tensors = {name.removeprefix("transformer."): values for name, values in load_file(file).items()}
    # They hold the causal mask as well.
    save_file(tensors | {"h.0.attn.bias": torch.ones(1, 1, 160, 160)}, file)
    assert torch.equal(logits_in_chunks(load(tmp_path, REFERENCE, torch.float32), prompt, [40]), expected)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("qwen2 tied", "model.layers.1.self_attn.k_proj.bias"),
        ("qwen3 tied", "model.layers.2.self_attn.q_norm.weight"),
        ("gpt2 tied", "transformer.wpe.weight"),
        ("gptj untied", "lm_head.bias"),
    ],
)
def test_a_missing_tensor_is_named(name: str, missing: str, tmp_path: Path) -> None:
    make_oracle(KINDS[name], tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors[missing]
    save_file(tensors, file)
    with pytest.raises(ModelError, match=missing):
        load(tmp_path, REFERENCE, torch.float32)
