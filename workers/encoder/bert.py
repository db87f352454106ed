"""BERT, and RoBERTa and XLM-RoBERTa, whose positions begin behind the padding's; MiniLM is a BERT."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from headrace.workers.encoder.config import EncoderConfig, read_activation, read_encoder
from headrace.workers.encoder.family import BlockNames, ClassNames, Family, FillNames
from headrace.workers.engine.models.fields import Fields

_BLOCK = BlockNames(
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    norm="output.LayerNorm",
)


def _parse(values: Mapping[str, Any], *, counts_behind_padding: bool) -> EncoderConfig:
    fields = Fields(values)
    hidden_size = fields.positive("hidden_size", int, 768)
    num_blocks = fields.positive("num_hidden_layers", int, 12)
    pad_id = fields.get("pad_token_id", int, 1) if counts_behind_padding else None
    return read_encoder(
        fields,
        read_activation(fields, "hidden_act", "gelu"),
        embedding_size=hidden_size,
        hidden_size=hidden_size,
        intermediate_size=fields.positive("intermediate_size", int, 3072),
        blocks=tuple(f"encoder.layer.{index}." for index in range(num_blocks)),
        num_heads=fields.positive("num_attention_heads", int, 12),
        layer_norm_eps=fields.get("layer_norm_eps", float, 1e-12),
        num_positions=fields.positive("max_position_embeddings", int, 512),
        first_position=0 if pad_id is None else pad_id + 1,
        pad_id=pad_id,
        num_types=fields.positive("type_vocab_size", int, 2),
    )


def parse_bert(values: Mapping[str, Any]) -> EncoderConfig:
    """Read config.json of BERT.

    Raises:
        ModelError: a field is unknown, or has a value that this code does not honour.
    """
    return _parse(values, counts_behind_padding=False)


def parse_roberta(values: Mapping[str, Any]) -> EncoderConfig:
    """Read config.json of RoBERTa or XLM-RoBERTa.

    Raises:
        ModelError: a field is unknown, or has a value that this code does not honour.
    """
    return _parse(values, counts_behind_padding=True)


BERT = Family(
    model_type="bert",
    class_name="Bert",
    parse=parse_bert,
    prefix="bert.",
    block=_BLOCK,
    mapping=None,
    pooler="pooler.dense",
    fill=FillNames(
        dense="cls.predictions.transform.dense",
        norm="cls.predictions.transform.LayerNorm",
        decoder="cls.predictions.decoder",
        bias="cls.predictions.bias",
    ),
    classes=ClassNames(dense=None, activation="tanh", out="classifier"),
)

ROBERTA = Family(
    model_type="roberta",
    class_name="Roberta",
    parse=parse_roberta,
    prefix="roberta.",
    block=_BLOCK,
    mapping=None,
    pooler="pooler.dense",
    fill=FillNames("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias", activation="gelu"),
    classes=ClassNames(dense="classifier.dense", activation="tanh", out="classifier.out_proj"),
)

XLM_ROBERTA = replace(ROBERTA, model_type="xlm-roberta", class_name="XLMRoberta")
