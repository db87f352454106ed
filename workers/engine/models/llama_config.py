"""The shape of a Llama, read from Hugging Face's config.json; what would be computed wrongly is refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from headrace.errors import ModelError
from headrace.workers.engine.models.rope import Rope

# What Llama computes, whatever config.json leaves out. Any other value changes the result, and is not implemented.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "quantization_config": (None,),
    "rope_interleaved": (None, False),
    "sliding_window": (None,),
    "is_decoder": (None, True, False),
}


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Shape and constants of one model.

    Attributes:
        vocab_size: tokens in the vocabulary.
        hidden_size: width of the residual stream.
        intermediate_size: width inside the MLP.
        num_layers: transformer blocks.
        num_heads: heads of queries.
        num_kv_heads: heads of keys and values; divides ``num_heads``.
        head_dim: numbers a head; ``num_heads * head_dim`` need not be ``hidden_size``.
        rms_norm_eps: added to the mean square.
        rope: the rotary embedding.
        tied: the output weights are the embedding's.
        attention_bias: q, k, v and o have biases.
        mlp_bias: gate, up and down have biases.
        max_positions: longest row that the model was made for, prompt and output.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: Rope
    tied: bool
    attention_bias: bool
    mlp_bias: bool
    max_positions: int

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> Self:
        """Read the fields of config.json.

        Raises:
            ModelError: a field is missing, or has a value that this code does not honour.
        """
        for name, allowed in _ONLY.items():
            if config.get(name, allowed[0]) not in allowed:
                raise ModelError(f"config.json: {name} {config[name]!r} is not supported")
        try:
            heads = config["num_attention_heads"]
            kv_heads = config.get("num_key_value_heads") or heads
            head_dim = config.get("head_dim") or config["hidden_size"] // heads
            if heads % kv_heads:
                raise ModelError(f"config.json: {heads} heads cannot share {kv_heads} key-value heads")
            return cls(
                vocab_size=config["vocab_size"],
                hidden_size=config["hidden_size"],
                intermediate_size=config["intermediate_size"],
                num_layers=config["num_hidden_layers"],
                num_heads=heads,
                num_kv_heads=kv_heads,
                head_dim=head_dim,
                rms_norm_eps=config.get("rms_norm_eps", 1e-6),
                rope=Rope.parse(config, head_dim),
                tied=config.get("tie_word_embeddings", False),
                attention_bias=config.get("attention_bias", False),
                mlp_bias=config.get("mlp_bias", False),
                max_positions=config.get("max_position_embeddings", 2048),
            )
        except KeyError as error:
            raise ModelError(f"config.json: {error} is missing") from error
