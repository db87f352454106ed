"""The shape of a GPT-2 or a GPT-J, read from config.json; what would be computed wrongly is refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from headrace.errors import ModelError
from headrace.workers.engine.models.fields import Fields
from headrace.workers.engine.models.rope import Rope

# Hugging Face's names of the activations that differ in rounding at most.
_GELU: Mapping[str, Literal["none", "tanh"]] = {
    "gelu": "none",
    "gelu_python": "none",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_python_tanh": "tanh",
}


@dataclass(frozen=True, slots=True)
class GptConfig:
    """Shape and constants of one model.

    Attributes:
        vocab_size: tokens in the vocabulary.
        hidden_size: width of the residual stream, ``num_heads * head_dim``.
        intermediate_size: width inside the MLP.
        num_layers: transformer blocks.
        num_heads: heads of queries, and of keys and values.
        head_dim: numbers a head.
        layer_norm_eps: added to the variance.
        gelu: which form of it the MLP has.
        tied: the output weights are the embedding's.
        max_positions: longest row that the model can compute, prompt and output.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    layer_norm_eps: float
    gelu: Literal["none", "tanh"]
    tied: bool
    max_positions: int

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads

    @classmethod
    def read(cls, fields: Fields, *, tied: bool, **own: Any) -> Self:
        """Read what both families have in their config.json, and end its reading.

        Args:
            fields: config.json, from which a family has read its own fields.
            tied: what the family takes where config.json does not say.
            own: attributes of the family's own.

        Raises:
            ModelError: a field is missing, unknown, or has a value that this code does not honour.
        """
        fields.only("scale_attn_weights", True)
        fields.only("add_cross_attention", False)
        fields.ignore("n_ctx", "summary_activation", "summary_first_dropout", "summary_proj_to_labels")
        fields.ignore("summary_type", "summary_use_proj")
        hidden_size, heads = fields.positive("n_embd", int), fields.positive("n_head", int)
        if hidden_size % heads:
            raise ModelError(f"config.json: {heads} heads do not divide n_embd {hidden_size}")
        activation = fields.get("activation_function", str, "gelu_new")
        if activation not in _GELU:
            raise fields.refusal("activation_function", activation)
        config = cls(
            vocab_size=fields.positive("vocab_size", int),
            hidden_size=hidden_size,
            intermediate_size=fields.positive("n_inner", int, 4 * hidden_size),
            num_layers=fields.positive("n_layer", int),
            num_heads=heads,
            head_dim=hidden_size // heads,
            layer_norm_eps=fields.get("layer_norm_epsilon", float, 1e-5),
            gelu=_GELU[activation],
            tied=fields.get("tie_word_embeddings", bool, tied),
            max_positions=fields.positive("n_positions", int),
            **own,
        )
        fields.refuse_unknown()
        return config


@dataclass(frozen=True, slots=True)
class GptJConfig(GptConfig):
    """Shape and constants of a GPT-J.

    Attributes:
        rope: its rotary embedding, of the first numbers of each head.
    """

    rope: Rope


def parse_gpt2(values: Mapping[str, Any]) -> GptConfig:
    """Read config.json of GPT-2.

    Raises:
        ModelError: a field is missing, unknown, or has a value that this code does not honour.
    """
    fields = Fields(values)
    fields.only("scale_attn_by_inverse_layer_idx", False)
    # In what precision and order transformers computes the same scores.
    fields.ignore("reorder_and_upcast_attn")
    return GptConfig.read(fields, tied=True)


def parse_gptj(values: Mapping[str, Any]) -> GptJConfig:
    """Read config.json of GPT-J.

    Raises:
        ModelError: a field is missing, unknown, or has a value that this code does not honour.
    """
    fields = Fields(values)
    fields.only("rotary", True)
    rotary_dim = fields.find("rotary_dim", int) if fields.says("rotary_dim") else 64
    if rotary_dim is None:
        raise fields.refusal("rotary_dim", None)
    config = GptJConfig.read(fields, tied=False, rope=Rope(10000.0, rotary_dim))
    if rotary_dim % 2 or not 2 <= rotary_dim <= config.head_dim:
        raise ModelError(f"config.json: rotary_dim {rotary_dim} does not fit heads of {config.head_dim} numbers")
    return config
