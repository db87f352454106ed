"""The shape of a model, read from a GGUF file's metadata.

Every key of the architecture is either honoured or refused by name: an ignored one (a logit scale, a partial
rotation) would give a model that runs and answers nonsense.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from headrace.errors import ModelError
from headrace.workers.model_store.gguf_file import GgufFile
from headrace.workers.model_store.gguf_rope import ROPE_FACTORS, RopeScaling, read_rope_scaling, shortest

_SHARED = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
)
_ROTATED = (
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",  # says how the model was trained, not what it computes
    "rope.scale_linear",
)
_HONOURED: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "llama": frozenset((*_SHARED, *_ROTATED, "attention.sliding_window", "expert_count", "expert_used_count")),
        "qwen2": frozenset((*_SHARED, *_ROTATED)),
        "qwen3": frozenset((*_SHARED, *_ROTATED)),
        "gpt2": frozenset((*_SHARED, "attention.layer_norm_epsilon")),
        "gptj": frozenset((*_SHARED, "attention.layer_norm_epsilon", "rope.dimension_count", "use_parallel_residual")),
    }
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a GGUF file says about a model.

    Attributes:
        architecture: llama, qwen2, qwen3, gpt2 or gptj.
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream.
        intermediate_size: width inside the MLP.
        num_layers: transformer blocks.
        num_heads: heads of queries.
        num_kv_heads: heads of keys and values.
        head_dim: numbers a head.
        context_length: positions that the model was made for.
        norm_eps: added to the mean square, or to the variance.
        rope_theta: base of the rotations' frequencies.
        rope_scaling: how they are stretched, None where they are not.
        rotary_dim: numbers of a head that are rotated.
        window: tokens that a token sees at most, None for all.
        tied: the output weights are the embedding's.
        bos_token_id: the id that begins a text, None where there is none.
        eos_token_id: the id that ends a text, None where there is none.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    rotary_dim: int
    window: int | None
    tied: bool
    bos_token_id: int | None
    eos_token_id: int | None


def read_shape(file: GgufFile) -> Shape:
    """Read a model's shape.

    Raises:
        ModelError: another architecture, a key that is missing, or one whose meaning would be lost.
    """
    architecture = _architecture(file)
    tensors = {tensor.name: tensor for tensor in file.tensors()}
    if "token_embd.weight" not in tensors:
        raise ModelError(f"{file.path} has no tensor token_embd.weight")
    hidden_size = file.get(f"{architecture}.embedding_length", int)
    num_heads = file.get(f"{architecture}.attention.head_count", int)
    head_dim = file.find(f"{architecture}.attention.key_length", int) or hidden_size // num_heads
    norm = "layer_norm_epsilon" if architecture.startswith("gpt") else "layer_norm_rms_epsilon"
    return Shape(
        architecture=architecture,
        vocab_size=tensors["token_embd.weight"].shape[0],
        hidden_size=hidden_size,
        intermediate_size=file.get(f"{architecture}.feed_forward_length", int),
        num_layers=file.get(f"{architecture}.block_count", int),
        num_heads=num_heads,
        num_kv_heads=_kv_heads(file, architecture, num_heads),
        head_dim=head_dim,
        context_length=file.get(f"{architecture}.context_length", int),
        norm_eps=shortest(file.get(f"{architecture}.attention.{norm}", float)),
        rope_theta=shortest(file.find(f"{architecture}.rope.freq_base", float) or 10_000.0),
        rope_scaling=read_rope_scaling(file, architecture, head_dim, tensors.get(ROPE_FACTORS)),
        rotary_dim=_rotary_dim(file, architecture, head_dim),
        window=file.find(f"{architecture}.attention.sliding_window", int),
        tied="output.weight" not in tensors,
        bos_token_id=file.find("tokenizer.ggml.bos_token_id", int),
        eos_token_id=file.find("tokenizer.ggml.eos_token_id", int),
    )


def _architecture(file: GgufFile) -> str:
    architecture = file.get("general.architecture", str)
    if architecture not in _HONOURED:
        raise ModelError(
            f"{file.path} is of the architecture {architecture!r}; GGUF files of these can be converted: "
            f"{', '.join(_HONOURED)}"
        )
    own = {key for key in file.metadata_keys() if key.startswith(f"{architecture}.")}
    unknown = sorted(own - {f"{architecture}.{key}" for key in _HONOURED[architecture]})
    if file.find(f"{architecture}.expert_count", int):
        unknown.append(f"{architecture}.expert_count")
    if file.find(f"{architecture}.use_parallel_residual", bool) is False:
        unknown.append(f"{architecture}.use_parallel_residual")
    if unknown:
        raise ModelError(f"{file.path} uses what cannot be converted: {', '.join(unknown)}")
    return architecture


def _kv_heads(file: GgufFile, architecture: str, num_heads: int) -> int:
    key = f"{architecture}.attention.head_count_kv"
    num_kv_heads = file.find(key, int) or num_heads
    if architecture.startswith("gpt") and num_kv_heads != num_heads:
        raise ModelError(f"{file.path}: {key} {num_kv_heads} is not the number of heads, which is not supported")
    return num_kv_heads


def _rotary_dim(file: GgufFile, architecture: str, head_dim: int) -> int:
    if architecture == "gptj":
        return file.get("gptj.rope.dimension_count", int)
    for key in ("attention.value_length", "rope.dimension_count"):
        if file.find(f"{architecture}.{key}", int) not in (None, head_dim):
            raise ModelError(
                f"{file.path}: {architecture}.{key} differs from the head size {head_dim}, which is not supported"
            )
    return head_dim
