"""Tiny random models of every kind that each family has, made by transformers."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from headrace.kernels.reference import ReferenceOperations

# What a model was loaded for is what its steps must be entered with, hence one table for all tests of a folder.
REFERENCE = ReferenceOperations()

VOCAB = 307
LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
GPT: dict[str, Any] = {"vocab_size": VOCAB, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 160}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
PER_PAIR = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.5, 4.0, 8.0],
    "long_factor": [1.0, 1.5, 4.0, 8.0],
    "attention_factor": 1.25,
    "original_max_position_embeddings": 32,
}


@dataclass(frozen=True)
class Kind:
    """A family and what is different about one model of it.

    Attributes:
        config: transformers' class.
        shape: the family's fields.
        changes: fields that this model has otherwise.
    """

    config: type[PreTrainedConfig]
    shape: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)

    def make(self) -> PreTrainedConfig:
        """Give transformers' configuration of it."""
        return self.config(**(self.shape | self.changes))


def _kinds(
    name: str, config: type[PreTrainedConfig], shape: dict[str, Any], **kinds: dict[str, Any]
) -> dict[str, Kind]:
    return {f"{name} {kind.replace('_', ' ')}": Kind(config, shape, changes) for kind, changes in kinds.items()}


KINDS = {
    **_kinds(
        "llama",
        LlamaConfig,
        LLAMA,
        tied={"tie_word_embeddings": True},
        untied={"tie_word_embeddings": False},
        one_head_of_keys_for_all={"num_key_value_heads": 1},
        a_head_of_keys_each={"num_key_value_heads": 6},
        heads_wider_than_hidden={"head_dim": 20},
        llama3_rope={"rope_parameters": LLAMA3_ROPE},
        linear_rope={"rope_parameters": LINEAR},
        yarn_rope={"rope_parameters": YARN},
        yarn_rope_in_every_detail={
            "rope_parameters": YARN | {"beta_fast": 6.0, "beta_slow": 0.5, "truncate": False, "attention_factor": 0.8}
        },
        yarn_rope_as_deepseek_has_it={"rope_parameters": YARN | {"mscale": 1.5, "mscale_all_dim": 0.7}},
        a_factor_a_pair={"rope_parameters": PER_PAIR},
        biases={"attention_bias": True, "mlp_bias": True},
    ),
    **_kinds(
        "mistral",
        MistralConfig,
        LLAMA,
        with_a_window={"sliding_window": 13},
        with_a_window_of_two={"sliding_window": 2},
        without_a_window={"sliding_window": None, "tie_word_embeddings": True},
        heads_narrower_than_hidden={"sliding_window": 40, "head_dim": 4},
    ),
    **_kinds(
        "qwen2",
        Qwen2Config,
        LLAMA,
        tied={"tie_word_embeddings": True},
        untied={"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        sliding_from_a_layer_on={"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1},
        sliding_by_layer_types={
            "use_sliding_window": True,
            "sliding_window": 11,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        yarn_rope={"rope_parameters": YARN},
        heads_wider_than_hidden={"head_dim": 20},
    ),
    **_kinds(
        "qwen3",
        Qwen3Config,
        LLAMA | {"head_dim": 16},
        tied={"tie_word_embeddings": True},
        untied={"head_dim": 8},
        biases={"attention_bias": True},
        sliding_from_a_layer_on={"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
        yarn_rope={"rope_parameters": YARN},
    ),
    **_kinds(
        "gpt2",
        GPT2Config,
        GPT,
        tied={},
        untied={"tie_word_embeddings": False},
        exact_gelu={"activation_function": "gelu"},
        narrow_inside={"n_inner": 56, "layer_norm_epsilon": 1e-2},
    ),
    **_kinds(
        "gptj",
        GPTJConfig,
        GPT,
        untied={"rotary_dim": 8},
        tied={"rotary_dim": 4, "tie_word_embeddings": True},
        whole_heads_rotated={"rotary_dim": 12, "n_inner": 56},
    ),
}


def with_device_heads(kind: Kind, head_dim: int) -> Kind:
    """The same model with heads of a size that attention is written for."""
    changes = dict(kind.changes)
    if "n_head" in kind.shape:
        shape = kind.shape | {"n_head": 2, "n_embd": 2 * head_dim}
        if "rotary_dim" in changes:
            changes["rotary_dim"] = {4: 16, 8: 32}.get(changes["rotary_dim"], head_dim)
        return replace(kind, shape=shape, changes=changes)
    changes["head_dim"] = head_dim
    rope = changes.get("rope_parameters", {})
    if "short_factor" in rope:
        factors = {name: [1.0 + i / 8 for i in range(head_dim // 2)] for name in ("short_factor", "long_factor")}
        changes["rope_parameters"] = rope | factors
    return replace(kind, changes=changes)


#: Wide and long enough for steps of thousands of tokens, and for products by kernels of ours.
LONG_QWEN3 = Kind(
    Qwen3Config,
    LLAMA
    | {
        "head_dim": 64,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_attention_heads": 8,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
)
LONG_GPT2 = Kind(GPT2Config, GPT | {"n_embd": 256, "n_positions": 2048})


def make_oracle(kind: Kind, folder: Path) -> PreTrainedModel:
    """Make a model, and save it into ``folder``.

    The default spread makes a tiny model repeat itself whatever it reads, so weights are spread wider.
    """
    torch.manual_seed(17)
    oracle = AutoModelForCausalLM.from_config(kind.make()).eval()
    for name, parameter in oracle.named_parameters():
        is_scale = parameter.dim() == 1 and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(is_scale), std=0.15)
    oracle.save_pretrained(folder)
    return oracle
