"""DistilBERT: a BERT without token types and without a pooler."""

from collections.abc import Mapping
from typing import Any

from headrace.workers.encoder.config import EncoderConfig, read_activation, read_encoder
from headrace.workers.encoder.family import BlockNames, ClassNames, Family, FillNames
from headrace.workers.engine.models.fields import Fields


def parse_distilbert(values: Mapping[str, Any]) -> EncoderConfig:
    """Read config.json of DistilBERT.

    Raises:
        ModelError: a field is unknown, or has a value that this code does not honour.
    """
    fields = Fields(values)
    # The sines are in the checkpoint, as a table like any other.
    fields.ignore("attention_dropout", "dropout", "qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds")
    fields.ignore("tie_weights_")
    hidden_size = fields.positive("dim", int, 768)
    num_blocks = fields.positive("n_layers", int, 6)
    return read_encoder(
        fields,
        read_activation(fields, "activation", "gelu"),
        embedding_size=hidden_size,
        hidden_size=hidden_size,
        intermediate_size=fields.positive("hidden_dim", int, 3072),
        blocks=tuple(f"transformer.layer.{index}." for index in range(num_blocks)),
        num_heads=fields.positive("n_heads", int, 12),
        layer_norm_eps=1e-12,
        num_positions=fields.positive("max_position_embeddings", int, 512),
        first_position=0,
        pad_id=None,
        num_types=0,
    )


DISTILBERT = Family(
    model_type="distilbert",
    class_name="DistilBert",
    parse=parse_distilbert,
    prefix="distilbert.",
    block=BlockNames(
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        out="attention.out_lin",
        attention_norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        norm="output_layer_norm",
    ),
    mapping=None,
    pooler=None,
    fill=FillNames("vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias"),
    classes=ClassNames(dense="pre_classifier", activation="relu", out="classifier"),
)
