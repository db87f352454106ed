import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.unit.model_store.tiny_gguf import GgufRecipe, Metadata

from headrace.errors import ModelError
from headrace.workers.model_store.gguf_convert import convert_gguf
from headrace.workers.model_store.store import ModelFolder

Write = Callable[[GgufRecipe], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "converted"
    path.mkdir()
    return path


def test_weights_come_back_exactly_in_hugging_faces_names_and_order_of_rows(
    written: Write, recipe: GgufRecipe, folder: Path
) -> None:
    convert_gguf(written(recipe), folder)
    converted = load_file(folder / "model.safetensors")
    assert converted.keys() == recipe.weights.keys()
    for name, values in recipe.weights.items():
        np.testing.assert_array_equal(converted[name], values, err_msg=name)


@pytest.mark.parametrize("quantisation", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_quantised_weights_equal_what_the_gguf_package_reads(
    written: Write, recipe: GgufRecipe, folder: Path, quantisation: str
) -> None:
    recipe.quantisation = quantisation
    stored = gguf.GGMLQuantizationType[quantisation]
    convert_gguf(written(recipe), folder)
    converted = load_file(folder / "model.safetensors")
    for name, values in recipe.weights.items():
        expected = values
        if values.ndim > 1:
            # Rows are quantised one by one, so their order does not matter here.
            expected = gguf.quants.dequantize(gguf.quants.quantize(values, stored), stored)
        np.testing.assert_array_equal(converted[name], expected, err_msg=name)


def test_tensors_larger_than_a_block_are_written_whole(
    written: Write, recipe: GgufRecipe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.workers.model_store.gguf_weights._BLOCK_VALUES", 7 * 64)
    convert_gguf(written(recipe), folder)
    for name, values in load_file(folder / "model.safetensors").items():
        np.testing.assert_array_equal(values, recipe.weights[name], err_msg=name)


def test_transformers_reads_the_same_weights_and_shape_from_the_gguf_file(
    written: Write, recipe: GgufRecipe, folder: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = written(recipe)
    convert_gguf(path, folder)
    ours = AutoModelForCausalLM.from_pretrained(folder)
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=ours)
    state = ours.state_dict()
    for name, values in theirs["tensors"].items():
        assert (state[name] == values).all(), name
    assert len(theirs["tensors"]) == len(recipe.weights)
    config, expected = AutoConfig.from_pretrained(folder), theirs["config"]
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        assert getattr(config, name) == expected[name]
    assert config.num_key_value_heads == expected["num_key_value_heads"]
    assert config.rope_parameters["rope_theta"] == expected["rope_theta"]


def test_the_real_model_knows_the_capital_of_france(smollm2: ModelFolder) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2.path)
    model = AutoModelForCausalLM.from_pretrained(smollm2.path)
    assert model.dtype == torch.float32
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(output[0]) == "The capital of France is Paris"


def test_an_output_matrix_of_its_own_is_kept(written: Write, recipe: GgufRecipe, folder: Path) -> None:
    recipe.weights["lm_head.weight"] = recipe.weights["model.embed_tokens.weight"] * 2
    convert_gguf(written(recipe), folder)
    converted = load_file(folder / "model.safetensors")
    np.testing.assert_array_equal(converted["lm_head.weight"], recipe.weights["lm_head.weight"])
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False


def test_the_configuration_is_that_of_the_file(written: Write, recipe: GgufRecipe, folder: Path) -> None:
    recipe.metadata |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    convert_gguf(written(recipe), folder)
    config = json.loads((folder / "config.json").read_text())
    assert (config["head_dim"], config["num_key_value_heads"], config["max_position_embeddings"]) == (16, 2, 128)
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert config["tie_word_embeddings"] is True


def test_every_id_that_ends_a_turn_is_named_the_main_one_first(
    written: Write, recipe: GgufRecipe, folder: Path
) -> None:
    recipe.metadata |= {"tokenizer.ggml.eot_token_id": 5}
    convert_gguf(written(recipe), folder)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 5, 0]


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"general.architecture": "mamba"}, "mamba"),
        ({"tokenizer.ggml.pre": "deepseek-coder"}, "deepseek-coder"),
        ({"tokenizer.ggml.model": "bert"}, "'bert'"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.scores is missing"),
        (
            {"tokenizer.ggml.model": "llama", "tokenizer.ggml.remove_extra_whitespaces": True},
            "remove_extra_whitespaces",
        ),
        ({"tokenizer.ggml.add_space_prefix": True}, "add_space_prefix"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "original_context_length"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0}, "longrope"),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale"),
        ({"llama.expert_count": 8}, "llama.expert_count"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count"),
        ({"llama.attention.head_count": [4, 4]}, "llama.attention.head_count"),
        ({"llama.feed_forward_length": 32}, "ffn_"),
        ({"tokenizer.ggml.eos_token_id": 100_000}, "eos_token_id"),
        ({"tokenizer.ggml.merges": ["Ġ nowhere"]}, "nowhere"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(
    written: Write, recipe: GgufRecipe, folder: Path, metadata: Metadata, named: str
) -> None:
    recipe.metadata |= metadata
    with pytest.raises(ModelError, match=named):
        convert_gguf(written(recipe), folder)


@pytest.mark.parametrize("key", ["tokenizer.ggml.pre", "llama.block_count", "tokenizer.ggml.token_type"])
def test_a_missing_key_is_named(written: Write, recipe: GgufRecipe, folder: Path, key: str) -> None:
    recipe.without = (key,)
    with pytest.raises(ModelError, match=key.rpartition(".")[2]):
        convert_gguf(written(recipe), folder)


def test_tensors_that_would_be_lost_are_refused_and_missing_ones_are_named(
    written: Write, recipe: GgufRecipe, folder: Path
) -> None:
    recipe.extra_tensors["blk.0.attn_q.bias"] = np.ones(64, np.float32)
    with pytest.raises(ModelError, match=r"blk\.0\.attn_q\.bias"):
        convert_gguf(written(recipe), folder)
    recipe.extra_tensors.clear()
    del recipe.weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight"):
        convert_gguf(written(recipe), folder)


@pytest.mark.parametrize("length", [0, 3, 40, 1000, -4])
def test_a_cut_off_file_is_called_damaged(written: Write, recipe: GgufRecipe, folder: Path, length: int) -> None:
    path = written(recipe)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelError, match=r"damaged") as caught:
        convert_gguf(path, folder)
    assert not re.search("axis|dtype|mmap|index|buffer|reshape", str(caught.value))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello" * 9, "is not a GGUF file: those begin with GGUF"),
        (b"PK", "is not a GGUF file"),
        (b"GGUF\x09\0\0\0" + bytes(40), "is of GGUF version 9; versions 2 and 3 can be read"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 40, "is damaged or cut off: its 48 bytes do not hold what it announces"),
    ],
)
def test_what_is_no_gguf_file_is_told_in_words(tmp_path: Path, folder: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        convert_gguf(path, folder)


def test_progress_ends_at_the_whole(written: Write, recipe: GgufRecipe, folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    convert_gguf(written(recipe), folder, lambda done, total: seen.append((done, total)))
    total = sum(values.nbytes for values in recipe.weights.values())
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_converting_needs_no_torch() -> None:
    code = "import headrace.workers.model_store.store, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
