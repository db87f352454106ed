"""A shape that is computed in no time."""

from collections.abc import Mapping
from typing import Any

TINY_BERT: Mapping[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 50,
    "max_position_embeddings": 600,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
