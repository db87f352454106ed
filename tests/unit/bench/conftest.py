"""The benchmarks on this machine's CPU, with a model so small that a case takes a second."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.bench.bench import Bench, Effort
from headrace.bench.machine import Machine

TINY: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "max_position_embeddings": 4096,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Of one shape, which is called L8B so that all cases know it."""
    machine = Machine(torch.device("cpu"), torch.float32)
    with Bench(machine, {"L8B": TINY}, Effort(rounds=1, budget_s=30, num_requests=2), tmp_path) as made:
        yield made
