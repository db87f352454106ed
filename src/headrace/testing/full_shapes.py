"""The two models that speed is measured with, in full size: their configurations, and random weights for them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from headrace.kernels.table import Operations
from headrace.testing.state_dict import RandomWeights
from headrace.workers.engine.checkpoint import Tensors
from headrace.workers.engine.loading import LoadedModel
from headrace.workers.engine.models.families import FAMILIES

#: Llama 3 8B.
L8B: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
#: Qwen3 0.6B.
Q06: Mapping[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
SHAPES: Mapping[str, Mapping[str, Any]] = {"L8B": L8B, "Q06": Q06}


def loader(
    config: Mapping[str, Any], weights: Tensors | None = None
) -> Callable[[Operations, torch.dtype], LoadedModel]:
    """Give what ``DeviceEngine`` loads a model by.

    Args:
        config: as config.json says it.
        weights: default: random ones, drawn on the current GPU.
    """

    def load(operations: Operations, dtype: torch.dtype) -> LoadedModel:
        source = weights or RandomWeights(torch.device("cuda", torch.cuda.current_device()))
        build = FAMILIES[config["architectures"][0]]
        return LoadedModel(build(config, source, operations, dtype), frozenset())

    return load
