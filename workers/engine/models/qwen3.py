"""Qwen3: a Llama that normalises each head of queries and keys, and some of whose layers may slide."""

from collections.abc import Mapping
from typing import Any

from headrace.workers.engine.models.fields import Fields
from headrace.workers.engine.models.llama_config import LlamaConfig, Traits, read_llama
from headrace.workers.engine.models.windows import read_windows


def parse_qwen3(values: Mapping[str, Any]) -> LlamaConfig:
    """Read config.json of the dense Qwen3.

    Raises:
        ModelError: a field is missing, unknown, or has a value that this code does not honour.
    """
    fields = Fields(values)
    fields.only("mlp_bias", False)
    bias = fields.get("attention_bias", bool, False)
    traits = Traits(num_kv_heads=32, head_dim=128, qkv_bias=bias, out_bias=bias, head_norms=True)
    return read_llama(fields, traits, read_windows(fields))
