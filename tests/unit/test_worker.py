"""What a worker process gives its children."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from headrace.bench.model_folder import write_model_without_weights
from headrace.config import Settings
from headrace.errors import ConfigurationError
from headrace.workers.worker import run, spare_cores


@pytest.mark.parametrize(
    ("num_cores", "num_workers", "num_threads"), [(8, 1, 7), (8, 4, 1), (8, 2, 3), (2, 1, 1), (1, 1, 1)]
)
def test_engines_share_the_cores_and_leave_one_to_the_rest(
    monkeypatch: pytest.MonkeyPatch, num_cores: int, num_workers: int, num_threads: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: num_cores)
    assert spare_cores(num_workers) == num_threads


@pytest.mark.parametrize(
    ("architecture", "limit"), [("BertModel", "max_request_tokens"), ("LlamaForCausalLM", "max_context_tokens")]
)
def test_a_worker_that_could_never_take_the_longest_request_says_so(
    tmp_path: Path, architecture: str, limit: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (tmp_path / "tokenizer.json").write_text("{}")
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigurationError, match=rf"kv_tokens 512 must hold {limit}"):
        run(Settings(model=str(tmp_path), kv_tokens=512))


def test_an_encoder_cannot_be_asked_for_what_only_texts_have(tmp_path: Path) -> None:
    write_model_without_weights(tmp_path, {"architectures": ["BertModel"], "model_type": "bert", "vocab_size": 400})
    (tmp_path / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    with pytest.raises(ConfigurationError, match="deterministic is for models that write text"):
        run(Settings.load(model=str(tmp_path), device="cuda", deterministic=True))
