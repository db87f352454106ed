"""Models of every family, written as GGUF as llama.cpp's converter does, and back: they compute what they did."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file
from tests.model.against_transformers import prompts
from tests.model.test_families import logits_in_chunks
from tests.unit.model_store.tiny_gguf import MERGES, TOKENS, TYPES, add_metadata
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from headrace.errors import ModelError
from headrace.testing.tiny_models import KINDS, LLAMA3_ROPE, REFERENCE, Kind, make_oracle
from headrace.workers.engine.loading import load
from headrace.workers.model_store.gguf_convert import convert_gguf
from headrace.workers.text.tokenizer import Tokenizer

Values = npt.NDArray[np.float32]
CASES = [
    "llama tied",
    "llama untied",
    "llama heads wider than hidden",
    "llama llama3 rope",
    "llama linear rope",
    "llama yarn rope",
    "mistral with a window",
    "mistral without a window",
    "qwen2 tied",
    "qwen2 untied",
    "qwen2 yarn rope",
    "qwen2 heads wider than hidden",
    "qwen3 tied",
    "qwen3 untied",
    "gpt2 tied",
    "gpt2 untied",
    "gpt2 narrow inside",
    "gptj untied",
    "gptj tied",
    "gptj whole heads rotated",
]


@pytest.fixture(params=CASES)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "converted"
    path.mkdir()
    return path


def test_a_model_that_went_through_gguf_computes_what_it_did(kind: Kind, tmp_path: Path, folder: Path) -> None:
    oracle = make_oracle(kind, tmp_path / "original")
    write_gguf(tmp_path / "model.gguf", oracle)
    convert_gguf(tmp_path / "model.gguf", folder)

    converted = load_file(folder / "model.safetensors")
    original = load_file(tmp_path / "original" / "model.safetensors")
    assert converted.keys() == original.keys()
    for name, values in original.items():
        assert torch.equal(converted[name], values), name

    (prompt,) = prompts(120)
    with torch.inference_mode():
        expected = oracle(torch.tensor([prompt])).logits[0]
        theirs = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([prompt])).logits[0]
    ours = logits_in_chunks(load(folder, REFERENCE, torch.float32), prompt, [60, 1, 59])
    assert (theirs - expected).abs().max() < 1e-4
    assert (ours - expected[[59, 60, 119]]).abs().max() < 1e-4
    assert Tokenizer.from_folder(folder).context_length == oracle.config.max_position_embeddings


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("qwen2 tied", lambda writer: writer.add_sliding_window(7), "qwen2.attention.sliding_window"),
        ("qwen3 tied", lambda writer: writer.add_float32("qwen3.rope.scaling.attn_factor", 2.0), "attn_factor"),
        ("qwen3 tied", lambda writer: writer.add_rope_dimension_count(4), "rope.dimension_count"),
        ("gpt2 tied", lambda writer: writer.add_rope_freq_base(1e6), "gpt2.rope.freq_base"),
        ("gptj untied", lambda writer: writer.add_parallel_residual(False), "gptj.use_parallel_residual"),
        ("gptj untied", lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32)), "rope_freqs"),
        ("llama tied", lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(3, np.float32)), "rope_freqs"),
        (
            "llama linear rope",
            lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32)),
            "rope_freqs",
        ),
        (
            "qwen2 tied",
            lambda writer: writer.add_tensor("blk.0.attn_q_norm.weight", np.ones(8, np.float32)),
            "attn_q_norm",
        ),
    ],
)
def test_what_a_family_does_not_know_is_refused_by_name(
    name: str, change: Callable[[Any], None], named: str, tmp_path: Path, folder: Path
) -> None:
    oracle = make_oracle(KINDS[name], tmp_path / "original")
    write_gguf(tmp_path / "model.gguf", oracle, change)
    with pytest.raises(ModelError, match=named):
        convert_gguf(tmp_path / "model.gguf", folder)


def write_gguf(path: Path, oracle: PreTrainedModel, change: Callable[[Any], None] | None = None) -> None:
    """Write a model by the names that the gguf package maps Hugging Face's to."""
    architecture = {"mistral": "llama"}.get(oracle.config.model_type, oracle.config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    _add_shape(writer, oracle, architecture)
    _add_vocabulary(writer, oracle.config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], oracle.config.num_hidden_layers)
    for name, tensor in oracle.state_dict().items():
        is_tied_head = name == "lm_head.weight" and oracle.config.tie_word_embeddings
        if not is_tied_head:
            values = np.ascontiguousarray(_as_llama_cpp(name, tensor.numpy(), oracle, architecture))
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), values)
    if oracle.config.to_dict().get("rope_parameters", {}).get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(oracle))
    if change:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: Any, oracle: PreTrainedModel, architecture: str) -> None:
    config = oracle.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if not isinstance(config, LlamaConfig | MistralConfig | Qwen2Config | Qwen3Config):
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        if architecture == "gptj":
            writer.add_rope_dimension_count(config.rotary_dim)
        return
    head_dim = oracle.model.layers[0].self_attn.head_dim
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if isinstance(config, MistralConfig) and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)


def _add_vocabulary(writer: Any, vocab_size: int) -> None:
    unused = [f"<unused{index}>" for index in range(vocab_size - len(TOKENS))]
    add_metadata(
        writer,
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": [*TOKENS, *unused],
            "tokenizer.ggml.token_type": [*TYPES, *(5 for _ in unused)],
            "tokenizer.ggml.merges": list(MERGES),
            "tokenizer.ggml.eos_token_id": 0,
        },
    )


def _as_llama_cpp(name: str, values: Values, oracle: PreTrainedModel, architecture: str) -> Values:
    """Lay a tensor out as llama.cpp's converter does: its definition, not our inverse of it."""
    if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return values.T
    if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        head_dim = oracle.model.layers[0].self_attn.head_dim
        heads = values.shape[0] // head_dim
        return values.reshape(heads, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(values.shape)
    return values


def _llama3_factors(oracle: PreTrainedModel) -> Values:
    """What each pair's turns are divided by: the frequencies without scaling over those that transformers made."""
    config = oracle.config
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    plain = LLAMA3_ROPE["rope_theta"] ** -exponents
    factors: Values = (plain / oracle.model.rotary_emb.inv_freq.double().numpy()).astype(np.float32)
    assert factors[0] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(LLAMA3_ROPE["factor"])
    return factors
