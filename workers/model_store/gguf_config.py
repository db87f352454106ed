"""The Hugging Face ``config.json`` of a Llama-family GGUF file.

Every ``llama.*`` key is either honoured or refused by name: an ignored one (a logit scale, a partial rotation) would
give a model that runs and answers nonsense.
"""

from dataclasses import dataclass

import numpy as np

from headrace.errors import ModelError
from headrace.workers.model_store.gguf_file import GgufFile

_HONOURED = frozenset(
    "llama." + key
    for key in (
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "vocab_size",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scale_linear",
        "expert_count",
        "expert_used_count",
    )
)


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The shape of a Llama model, in the names that Hugging Face's ``LlamaConfig`` gives its fields."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, str | float] | None
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_id: int | None
    architectures: tuple[str, ...] = ("LlamaForCausalLM",)
    model_type: str = "llama"
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    dtype: str = "float32"
    torch_dtype: str = "float32"  # the older name of dtype


def read_config(file: GgufFile) -> LlamaConfig:
    """Read a model's shape from its GGUF metadata.

    Raises:
        ModelError: another architecture, a key that is missing, or one whose meaning would be lost.
    """
    _refuse_what_would_be_lost(file)
    shapes = {tensor.name: tensor.shape for tensor in file.tensors()}
    if "token_embd.weight" not in shapes:
        raise ModelError(f"{file.path} has no tensor token_embd.weight")
    hidden_size = file.get("llama.embedding_length", int)
    num_heads = file.get("llama.attention.head_count", int)
    head_dim = file.find("llama.attention.key_length", int) or hidden_size // num_heads
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if file.find(key, int) not in (None, head_dim):
            raise ModelError(f"{file.path}: {key} differs from the head size {head_dim}, which is not supported")
    return LlamaConfig(
        vocab_size=shapes["token_embd.weight"][0],
        hidden_size=hidden_size,
        intermediate_size=file.get("llama.feed_forward_length", int),
        num_hidden_layers=file.get("llama.block_count", int),
        num_attention_heads=num_heads,
        num_key_value_heads=file.find("llama.attention.head_count_kv", int) or num_heads,
        head_dim=head_dim,
        max_position_embeddings=file.get("llama.context_length", int),
        rms_norm_eps=_shortest(file.get("llama.attention.layer_norm_rms_epsilon", float)),
        rope_theta=_shortest(file.find("llama.rope.freq_base", float) or 10_000.0),
        rope_scaling=_rope_scaling(file),
        tie_word_embeddings="output.weight" not in shapes,
        bos_token_id=file.find("tokenizer.ggml.bos_token_id", int),
        eos_token_id=file.find("tokenizer.ggml.eos_token_id", int),
    )


def _refuse_what_would_be_lost(file: GgufFile) -> None:
    architecture = file.get("general.architecture", str)
    if architecture != "llama":
        raise ModelError(f"{file.path} is of the architecture {architecture!r}; GGUF files of 'llama' can be converted")
    unknown = sorted(key for key in file.metadata_keys() - _HONOURED if key.startswith("llama."))
    if file.find("llama.expert_count", int):
        unknown.append("llama.expert_count")
    if unknown:
        raise ModelError(f"{file.path} uses what cannot be converted: {', '.join(unknown)}")


def _rope_scaling(file: GgufFile) -> dict[str, str | float] | None:
    kind = file.find("llama.rope.scaling.type", str)
    factor = file.find("llama.rope.scaling.factor", float) or file.find("llama.rope.scale_linear", float)
    if kind == "none" or (kind is None and factor is None):
        return None
    if kind not in (None, "linear") or factor is None:
        raise ModelError(
            f"{file.path} scales its positions by llama.rope.scaling.type {kind!r}, which is not supported"
        )
    return {"rope_type": "linear", "factor": _shortest(factor)}


def _shortest(value: float) -> float:
    # GGUF holds float32: 9.999999747378752e-06 is the nearest one to 1e-05, which is what the model's maker wrote.
    return float(str(np.float32(value)))
