"""Small GGUF files made to measure, for the converter to read."""

from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from tokenizers.pre_tokenizers import ByteLevel

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 96, 2, 4, 2, 16
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("Ġ a", "b c", "Ġa bc")
TOKENS = (*SPECIAL, *sorted(ByteLevel.alphabet()), "Ġa", "bc", "Ġabc", "<tool>")
TYPES = (3,) * len(SPECIAL) + (1,) * (len(TOKENS) - len(SPECIAL) - 1) + (4,)

Weights = dict[str, npt.NDArray[np.float32]]
Value = str | int | float | bool | list[str] | list[int] | list[float]
Metadata = dict[str, Value]


@dataclass
class GgufRecipe:
    """A small Llama and what is different about it; ``weights`` are in Hugging Face's names and order of rows."""

    weights: Weights = field(default_factory=lambda: random_weights())
    quantisation: str = "F32"
    metadata: Metadata = field(default_factory=dict)
    without: tuple[str, ...] = ()
    extra_tensors: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)


def random_weights() -> Weights:
    """Make the weights of a two-layer Llama, by Hugging Face's names; the same at every call."""
    random = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (len(TOKENS), HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (HIDDEN,),
            f"{prefix}.post_attention_layernorm.weight": (HIDDEN,),
            f"{prefix}.self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            f"{prefix}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": (INNER, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": (HIDDEN, INNER),
        }
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(path: Path, recipe: GgufRecipe) -> None:
    """Write the model of ``recipe`` as llama.cpp's converter would."""
    metadata: Metadata = {
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": HEAD_DIM,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": list(TOKENS),
        "tokenizer.ggml.token_type": list(TYPES),
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **recipe.metadata,
    }
    architecture = str(metadata.pop("general.architecture", "llama"))
    writer = gguf.GGUFWriter(path, architecture)
    add_metadata(writer, {key: value for key, value in metadata.items() if key not in recipe.without})
    stored = gguf.GGMLQuantizationType[recipe.quantisation]
    for name, values in recipe.weights.items():
        ordered = np.ascontiguousarray(_as_llama_cpp(name, values))
        if values.ndim == 1:
            writer.add_tensor(_gguf_name(name), ordered)
        else:
            writer.add_tensor(_gguf_name(name), gguf.quants.quantize(ordered, stored), raw_dtype=stored)
    for name, values in recipe.extra_tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_metadata(writer: gguf.GGUFWriter, metadata: Metadata) -> None:
    """Add keys, each in the type that llama.cpp's converter gives it."""
    for key, value in metadata.items():
        _add(writer, key, value)


def _add(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _as_llama_cpp(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Order the rows of query and key weights as llama.cpp's converter does: its definition, not our inverse of it."""
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
    if heads is None:
        return values
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _gguf_name(name: str) -> str:
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outer:
        return outer[name]
    _, _, layer, *rest = name.split(".")
    inner = {
        "input_layernorm": "attn_norm",
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
    }
    return f"blk.{layer}.{inner[rest[-2]]}.weight"
