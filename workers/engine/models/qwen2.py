"""Qwen2 and Qwen2.5: a Llama whose q, k and v have biases, and some of whose layers may slide."""

from collections.abc import Mapping
from typing import Any

from headrace.workers.engine.models.fields import Fields
from headrace.workers.engine.models.llama_config import LlamaConfig, Traits, read_llama
from headrace.workers.engine.models.windows import read_windows


def parse_qwen2(values: Mapping[str, Any]) -> LlamaConfig:
    """Read config.json of Qwen2 and Qwen2.5.

    Raises:
        ModelError: a field is missing, unknown, or has a value that this code does not honour.
    """
    fields = Fields(values)
    # The family's biases are not for config.json to choose.
    fields.only("attention_bias", True)
    fields.only("mlp_bias", False)
    return read_llama(fields, Traits(num_kv_heads=32, qkv_bias=True), read_windows(fields))
