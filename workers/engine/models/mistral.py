"""Mistral: a Llama whose layers may all see only the last tokens."""

from collections.abc import Mapping
from typing import Any

from headrace.workers.engine.models.fields import Fields
from headrace.workers.engine.models.llama_config import LlamaConfig, Traits, read_llama


def parse_mistral(values: Mapping[str, Any]) -> LlamaConfig:
    """Read config.json of Mistral 7B and Nemo.

    Raises:
        ModelError: a field is missing, unknown, or has a value that this code does not honour.
    """
    fields = Fields(values)
    # Null is no window (7B from version 0.2 on); only a field that is not there at all takes the family's default.
    window = fields.find("sliding_window", int) if fields.says("sliding_window") else 4096
    if window is not None and window < 1:
        raise fields.refusal("sliding_window", window)
    num_layers = fields.positive("num_hidden_layers", int)
    fields.only("layer_types", ["full_attention" if window is None else "sliding_attention"] * num_layers)
    for bias in ("attention_bias", "mlp_bias"):
        fields.only(bias, False)
    return read_llama(fields, Traits(num_kv_heads=8), (window,) * num_layers)
