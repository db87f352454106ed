"""The shape of a Llama or a relative, read from config.json; what would be computed wrongly is refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.errors import ModelError
from headrace.workers.engine.models.fields import Fields
from headrace.workers.engine.models.rope import Rope


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
        qkv_bias: q, k and v have biases.
        out_bias: o has one.
        mlp_bias: gate, up and down have biases.
        head_norms: each head of queries and of keys is normalised before it is rotated.
        windows: of each layer, the tokens that a token sees at most, itself among them; None for all.
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
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    head_norms: bool
    windows: tuple[int | None, ...]
    max_positions: int


@dataclass(frozen=True, slots=True)
class Traits:
    """What tells the relatives of Llama apart; the values here are Llama's own.

    Attributes:
        num_kv_heads: heads of keys and values where config.json says nothing, None for one each.
        head_dim: numbers a head where config.json says nothing, None for ``hidden_size / num_heads``.
        qkv_bias: q, k and v have biases.
        out_bias: o has one.
        mlp_bias: gate, up and down have biases.
        head_norms: heads of queries and keys are normalised.
    """

    num_kv_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False


def read_llama(fields: Fields, traits: Traits, windows: tuple[int | None, ...] | None = None) -> LlamaConfig:
    """Read what all relatives have in their config.json, and end its reading.

    Args:
        fields: config.json, from which a relative has read its own fields.
        traits: the relative's.
        windows: a layer each; None where there are none.

    Raises:
        ModelError: a field is missing, unknown, or has a value that this code does not honour.
    """
    fields.only("hidden_act", "silu", "swish")
    fields.only("is_decoder", True, False)  # older configurations write False, and decode all the same
    for name in ("rope_interleaved", "use_mrope", "add_cross_attention", "is_encoder_decoder"):
        fields.only(name, False)
    heads, hidden_size = fields.positive("num_attention_heads", int), fields.positive("hidden_size", int)
    kv_heads = fields.positive("num_key_value_heads", int, _default_kv_heads(fields, traits, heads))
    head_dim = fields.find("head_dim", int) or traits.head_dim or hidden_size // heads
    if heads % kv_heads:
        raise ModelError(f"config.json: {heads} heads cannot share {kv_heads} key-value heads")
    num_layers = fields.positive("num_hidden_layers", int)
    max_positions = fields.positive("max_position_embeddings", int, 2048)
    config = LlamaConfig(
        vocab_size=fields.positive("vocab_size", int),
        hidden_size=hidden_size,
        intermediate_size=fields.positive("intermediate_size", int),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.get("rms_norm_eps", float, 1e-6),
        rope=Rope.parse(fields, head_dim, max_positions),
        tied=fields.get("tie_word_embeddings", bool, False),
        qkv_bias=traits.qkv_bias,
        out_bias=traits.out_bias,
        mlp_bias=traits.mlp_bias,
        head_norms=traits.head_norms,
        windows=windows or (None,) * num_layers,
        max_positions=max_positions,
    )
    fields.refuse_unknown()
    return config


def parse_llama(values: Mapping[str, Any]) -> LlamaConfig:
    """Read config.json of Llama 2, Llama 3, SmolLM2.

    Raises:
        ModelError: a field is missing, unknown, or has a value that this code does not honour.
    """
    fields = Fields(values)
    fields.only("sliding_window")
    bias = fields.get("attention_bias", bool, False)
    return read_llama(fields, Traits(qkv_bias=bias, out_bias=bias, mlp_bias=fields.get("mlp_bias", bool, False)))


def _default_kv_heads(fields: Fields, traits: Traits, heads: int) -> int:
    # Null has always meant a head each; only a field that is not there at all takes its family's default.
    if fields.says("num_key_value_heads") or traits.num_kv_heads is None:
        return heads
    return traits.num_kv_heads
