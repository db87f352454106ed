"""The weights of a Llama-family GGUF file, as one float32 safetensors file.

Tensors are dequantised in blocks of rows and written as they come, so the memory needed does not grow with the model.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headrace.errors import ModelError
from headrace.workers.model_store.gguf_config import LlamaConfig
from headrace.workers.model_store.gguf_file import GgufFile, GgufTensor

_BLOCK_VALUES = 8 << 20
_FLOAT32_BYTES = 4
_OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def weights_bytes(file: GgufFile) -> int:
    """Return the size of all tensors in float32, in bytes."""
    return sum(tensor.num_values for tensor in file.tensors()) * _FLOAT32_BYTES


def write_weights(
    file: GgufFile, config: LlamaConfig, path: Path, metadata: dict[str, str], advance: Callable[[int], None]
) -> None:
    """Write every tensor of ``file`` into the safetensors file ``path``.

    Args:
        file: the source.
        config: the model's shape, against which names and shapes are checked.
        path: the safetensors file to make.
        metadata: goes into the safetensors header.
        advance: called with the number of bytes written since its last call.

    Raises:
        ModelError: a tensor is missing, unknown, of a wrong shape, or stored in a type that cannot be read.
    """
    expected = expected_shapes(config)
    tensors = list(file.tensors())
    _check(file, expected, tensors)
    with path.open("wb") as output:
        output.write(_header(expected, tensors, metadata))
        for tensor in tensors:
            for values in _blocks(tensor, _row_order(tensor, config)):
                output.write(values.data)
                advance(values.nbytes)


def expected_shapes(config: LlamaConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return, for each llama.cpp tensor name of the model, its Hugging Face name and its shape."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    layer_shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    vocabulary = (config.vocab_size, hidden)
    shapes = {
        "token_embd.weight": (_OUTER_NAMES["token_embd.weight"], vocabulary),
        "output_norm.weight": (_OUTER_NAMES["output_norm.weight"], (hidden,)),
    }
    if not config.tie_word_embeddings:
        shapes["output.weight"] = (_OUTER_NAMES["output.weight"], vocabulary)
    for layer in range(config.num_hidden_layers):
        for name, shape in layer_shapes.items():
            shapes[f"blk.{layer}.{name}.weight"] = (f"model.layers.{layer}.{_LAYER_NAMES[name]}.weight", shape)
    return shapes


def _check(file: GgufFile, expected: dict[str, tuple[str, tuple[int, ...]]], tensors: list[GgufTensor]) -> None:
    present = {tensor.name for tensor in tensors}
    if unknown := sorted(present - expected.keys()):
        raise ModelError(f"{file.path} has tensors of unknown meaning: {', '.join(unknown[:5])}")
    if missing := sorted(expected.keys() - present):
        raise ModelError(f"{file.path} lacks tensors: {', '.join(missing[:5])}")
    for tensor in tensors:
        shape = expected[tensor.name][1]
        if tensor.shape != shape:
            raise ModelError(f"{file.path}: {tensor.name} has shape {tensor.shape}, expected {shape}")


def _header(
    expected: dict[str, tuple[str, tuple[int, ...]]], tensors: list[GgufTensor], metadata: dict[str, str]
) -> bytes:
    """Make a safetensors header: its length in 8 bytes, then JSON, padded so that the data begin aligned."""
    fields: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.num_values * _FLOAT32_BYTES
        name, shape = expected[tensor.name]
        fields[name] = {"dtype": "F32", "shape": shape, "data_offsets": (offset, end)}
        offset = end
    encoded = json.dumps(fields, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def _row_order(tensor: GgufTensor, config: LlamaConfig) -> npt.NDArray[np.int64]:
    """Return the stored row that each row of the result is taken from.

    llama.cpp rotates neighbouring pairs of a head's rows, Hugging Face the head's two halves: where one has rows
    (head, pair, half), the other has (head, half, pair). Rows are quantised each for itself, so they are reordered as
    stored, before they grow to float32.
    """
    order = np.arange(tensor.rows.shape[0], dtype=np.int64)
    if not tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
        return order
    return order.reshape(-1, config.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def _blocks(tensor: GgufTensor, order: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.float32]]:
    rows_per_block = max(1, _BLOCK_VALUES * len(order) // tensor.num_values)
    for index in range(math.ceil(len(order) / rows_per_block)):
        yield tensor.dequantise(order[index * rows_per_block : (index + 1) * rows_per_block])
