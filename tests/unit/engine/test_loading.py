import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from headrace.errors import ModelError
from headrace.kernels.reference import ReferenceOperations
from headrace.workers.channel import Add
from headrace.workers.engine.assembly import host_engine
from headrace.workers.engine.loading import load

REFERENCE = ReferenceOperations()


def write(folder: Path, model_dir: Path, **changes: Any) -> Path:
    config = json.loads((model_dir / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").symlink_to(model_dir / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"architectures": ["OtherForCausalLM"]},
            "OtherForCausalLM.*supported are: GPT2LMHeadModel, ",
        ),
        ({"architectures": []}, "supported are"),
        ({"architectures": {"a": 1}}, "supported are"),
        ({"num_key_value_heads": 0}, "num_key_value_heads 0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0"),
        ({"max_position_embeddings": -5}, "max_position_embeddings -5"),
        ({"rope_theta": -1}, "rope_theta -1"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor 0"),
        (
            {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 0}},
            "original_max_position_embeddings 0",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            "rope_scaling and rope_parameters say different things",
        ),
        ({"eos_token_id": "2"}, "eos_token_id '2'"),
        ({"eos_token_id": [2, "x"]}, "eos_token_id"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "rope parameters: 'low_freq_factor' is missing"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"intermediate_size": 47}, "gate_proj.weight' has shape \\(48, 32\\), not \\(47, 32\\)"),
        ({"tie_word_embeddings": False}, "lm_head.weight"),
        ({"num_hidden_layers": 3}, "model.layers.2"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(
    tmp_path: Path, model_dir: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        load(write(tmp_path, model_dir, **changes), REFERENCE, torch.float32)


def test_a_missing_field_is_named(tmp_path: Path, model_dir: Path) -> None:
    folder = write(tmp_path, model_dir)
    config = json.loads((folder / "config.json").read_text())
    del config["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="'vocab_size' is missing"):
        load(folder, REFERENCE, torch.float32)


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [(2, None, {2}), ([2, 3], None, {2, 3}), (None, None, set()), (2, [4, 5], {4, 5}), (None, 6, {6})],
)
def test_ends_of_sequence_come_from_generation_config_before_config(
    tmp_path: Path, model_dir: Path, in_config: Any, in_generation: Any, expected: set[int]
) -> None:
    folder = write(tmp_path, model_dir, eos_token_id=in_config)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": in_generation}))
    assert load(folder, REFERENCE, torch.float32).eos_ids == expected


def test_a_sharded_model_computes_what_the_single_file_does(
    tmp_path: Path, model_dir: Path, tensors: dict[str, torch.Tensor], params: Any
) -> None:
    folder = write(tmp_path, model_dir)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    def tokens(source: Path) -> list[int]:
        engine = host_engine(
            load(source, REFERENCE, torch.float32), REFERENCE, max_rows=1, kv_tokens=64, step_tokens=64
        )
        engine.add(Add(1, (5, 6, 7), (), params()))
        return [token for _ in range(12) for _, token, _ in engine.step().tokens]

    assert tokens(folder) == tokens(model_dir)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", "[" * 100_000),
        ("model.safetensors", "no tensors"),
        ("model.safetensors.index.json", "{}"),
        ("model.safetensors.index.json", "[]"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 5}}'),
        ("model.safetensors.index.json", '{"weight_map": {"a": ["b"]}}'),
        ("model.safetensors.index.json", '{"weight_map": {"a": "gone.safetensors"}}'),
    ],
)
def test_a_damaged_file_is_a_model_error(tmp_path: Path, model_dir: Path, name: str, content: str) -> None:
    folder = write(tmp_path, model_dir)
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_text(content)
    with pytest.raises(ModelError, match=str(folder)):
        load(folder, REFERENCE, torch.float32)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn])
def test_quantised_weights_are_refused_by_name(
    tmp_path: Path, model_dir: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    folder = write(tmp_path, model_dir)
    (folder / "model.safetensors").unlink()
    save_file(tensors | {"model.norm.weight": torch.ones(32).to(dtype)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=f"'model.norm.weight' holds {dtype}"):
        load(folder, REFERENCE, torch.float32)


def test_a_folder_without_a_model_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        load(tmp_path, REFERENCE, torch.float32)
