"""Which tensors a GGUF file must have, and what Hugging Face calls each of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from headrace.workers.model_store.gguf_shape import Shape

Layout = Literal["same", "pairs", "transposed"]
"""How a stored tensor becomes Hugging Face's: as it is; by its rows' order within heads; turned over."""

_RMS_BLOCK: Final = MappingProxyType(
    {
        "attn_norm.weight": "input_layernorm.weight",
        "attn_q.weight": "self_attn.q_proj.weight",
        "attn_k.weight": "self_attn.k_proj.weight",
        "attn_v.weight": "self_attn.v_proj.weight",
        "attn_output.weight": "self_attn.o_proj.weight",
        "ffn_norm.weight": "post_attention_layernorm.weight",
        "ffn_gate.weight": "mlp.gate_proj.weight",
        "ffn_up.weight": "mlp.up_proj.weight",
        "ffn_down.weight": "mlp.down_proj.weight",
    }
)
_QWEN2_BLOCK: Final = MappingProxyType(
    _RMS_BLOCK
    | {
        "attn_q.bias": "self_attn.q_proj.bias",
        "attn_k.bias": "self_attn.k_proj.bias",
        "attn_v.bias": "self_attn.v_proj.bias",
    }
)
_QWEN3_BLOCK: Final = MappingProxyType(
    _RMS_BLOCK | {"attn_q_norm.weight": "self_attn.q_norm.weight", "attn_k_norm.weight": "self_attn.k_norm.weight"}
)
_RMS_OUTER: Final = MappingProxyType(
    {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
)
_GPT2_BLOCK: Final = MappingProxyType(
    {
        f"{theirs}.{part}": f"{ours}.{part}"
        for theirs, ours in {
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        }.items()
        for part in ("weight", "bias")
    }
)
_GPT2_OUTER: Final = MappingProxyType(
    {
        "token_embd.weight": "transformer.wte.weight",
        "position_embd.weight": "transformer.wpe.weight",
        "output_norm.weight": "transformer.ln_f.weight",
        "output_norm.bias": "transformer.ln_f.bias",
        "output.weight": "lm_head.weight",
    }
)
_GPTJ_BLOCK: Final = MappingProxyType(
    {
        "attn_norm.weight": "ln_1.weight",
        "attn_norm.bias": "ln_1.bias",
        "attn_q.weight": "attn.q_proj.weight",
        "attn_k.weight": "attn.k_proj.weight",
        "attn_v.weight": "attn.v_proj.weight",
        "attn_output.weight": "attn.out_proj.weight",
        "ffn_up.weight": "mlp.fc_in.weight",
        "ffn_up.bias": "mlp.fc_in.bias",
        "ffn_down.weight": "mlp.fc_out.weight",
        "ffn_down.bias": "mlp.fc_out.bias",
    }
)
_GPTJ_OUTER: Final = MappingProxyType(
    {name: ours for name, ours in _GPT2_OUTER.items() if not name.startswith("position")}
    | {"output.bias": "lm_head.bias"}
)
_NAMES: Final[Mapping[str, tuple[str, Mapping[str, str], Mapping[str, str]]]] = MappingProxyType(
    {
        "llama": ("model.layers", _RMS_OUTER, _RMS_BLOCK),
        "qwen2": ("model.layers", _RMS_OUTER, _QWEN2_BLOCK),
        "qwen3": ("model.layers", _RMS_OUTER, _QWEN3_BLOCK),
        "gpt2": ("transformer.h", _GPT2_OUTER, _GPT2_BLOCK),
        "gptj": ("transformer.h", _GPTJ_OUTER, _GPTJ_BLOCK),
    }
)


@dataclass(frozen=True, slots=True)
class ExpectedTensor:
    """One tensor of a model.

    Attributes:
        name: Hugging Face's.
        shape: as the GGUF file stores it, rows first.
        layout: how it becomes Hugging Face's.
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout

    @property
    def result_shape(self) -> tuple[int, ...]:
        """The shape that Hugging Face gives it."""
        return self.shape[::-1] if self.layout == "transposed" else self.shape


def expected_tensors(shape: Shape) -> dict[str, ExpectedTensor]:
    """List the tensors of a model by llama.cpp's names."""
    prefix, outer, block = _NAMES[shape.architecture]
    shapes = _shapes(shape)
    expected = {
        name: ExpectedTensor(ours, shapes[name], "same")
        for name, ours in outer.items()
        if not (shape.tied and name == "output.weight")
    }
    for layer in range(shape.num_layers):
        for name, ours in block.items():
            layout = _layout(shape.architecture, name)
            expected[f"blk.{layer}.{name}"] = ExpectedTensor(f"{prefix}.{layer}.{ours}", shapes[name], layout)
    return expected


def _layout(architecture: str, name: str) -> Layout:
    """Tell how a block's tensor becomes Hugging Face's.

    llama.cpp rotates neighbouring numbers of a head in Llama, where Hugging Face rotates halves, so its converter
    reorders the rows; in the Qwens both rotate halves, and in GPT-J both rotate neighbours. Hugging Face's GPT-2 stores
    weights input first.
    """
    if architecture == "llama" and name in ("attn_q.weight", "attn_k.weight"):
        return "pairs"
    if architecture == "gpt2" and name.endswith("weight") and "norm" not in name:
        return "transposed"
    return "same"


def _shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    vocabulary = (shape.vocab_size, hidden)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": vocabulary,
        "position_embd.weight": (shape.context_length, hidden),
        "output.weight": vocabulary,
        "output.bias": (shape.vocab_size,),
        "attn_q_norm.weight": (shape.head_dim,),
        "attn_k_norm.weight": (shape.head_dim,),
    }
    for norm in ("output_norm", "attn_norm", "ffn_norm"):
        shapes |= {f"{norm}.weight": (hidden,), f"{norm}.bias": (hidden,)}
    products = {
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_qkv": (queries + 2 * keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    for name, size in products.items():
        shapes |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    return shapes
