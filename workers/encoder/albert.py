"""ALBERT: narrow embeddings, mapped to the hidden states' width once, and blocks that share their weights."""

from collections.abc import Mapping
from typing import Any

from headrace.errors import ModelError
from headrace.workers.encoder.config import EncoderConfig, read_activation, read_encoder
from headrace.workers.encoder.family import BlockNames, ClassNames, Family, FillNames
from headrace.workers.engine.models.fields import Fields


def parse_albert(values: Mapping[str, Any]) -> EncoderConfig:
    """Read config.json of ALBERT.

    Raises:
        ModelError: a field is unknown, or has a value that this code does not honour.
    """
    fields = Fields(values)
    fields.ignore("classifier_dropout_prob", "down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks")
    num_layers = fields.positive("num_hidden_layers", int, 12)
    num_groups = fields.positive("num_hidden_groups", int, 1)
    num_inner = fields.positive("inner_group_num", int, 1)
    if num_groups > num_layers:
        raise ModelError(f"config.json: {num_layers} layers cannot have {num_groups} groups")
    groups = [int(layer / (num_layers / num_groups)) for layer in range(num_layers)]
    return read_encoder(
        fields,
        read_activation(fields, "hidden_act", "gelu_new"),
        embedding_size=fields.positive("embedding_size", int, 128),
        hidden_size=fields.positive("hidden_size", int, 4096),
        intermediate_size=fields.positive("intermediate_size", int, 16384),
        blocks=tuple(
            f"encoder.albert_layer_groups.{group}.albert_layers.{inner}."
            for group in groups
            for inner in range(num_inner)
        ),
        num_heads=fields.positive("num_attention_heads", int, 64),
        layer_norm_eps=fields.get("layer_norm_eps", float, 1e-12),
        num_positions=fields.positive("max_position_embeddings", int, 512),
        first_position=0,
        pad_id=None,
        num_types=fields.positive("type_vocab_size", int, 2),
    )


ALBERT = Family(
    model_type="albert",
    class_name="Albert",
    parse=parse_albert,
    prefix="albert.",
    block=BlockNames(
        query="attention.query",
        key="attention.key",
        value="attention.value",
        out="attention.dense",
        attention_norm="attention.LayerNorm",
        up="ffn",
        down="ffn_output",
        norm="full_layer_layer_norm",
    ),
    mapping="encoder.embedding_hidden_mapping_in",
    pooler="pooler",
    fill=FillNames("predictions.dense", "predictions.LayerNorm", "predictions.decoder", "predictions.bias"),
    classes=ClassNames(dense=None, activation="tanh", out="classifier"),
)
