"""The Hugging Face ``config.json`` of a model that came from a GGUF file."""

from typing import Any

from headrace.workers.model_store.gguf_rope import RopeScaling
from headrace.workers.model_store.gguf_shape import Shape


def hugging_face_config(shape: Shape) -> dict[str, Any]:
    """Write a shape in the names that its family's configuration has for it."""
    common: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": shape.bos_token_id,
        "eos_token_id": shape.eos_token_id,
        "dtype": "float32",
        "torch_dtype": "float32",  # the older name of dtype
    }
    if shape.architecture == "gpt2":
        return {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"} | common | _gpt(shape)
    if shape.architecture == "gptj":
        own = {"rotary_dim": shape.rotary_dim}
        return {"architectures": ["GPTJForCausalLM"], "model_type": "gptj"} | common | _gpt(shape) | own
    return common | _llama(shape)


def _gpt(shape: Shape) -> dict[str, Any]:
    return {
        "n_embd": shape.hidden_size,
        "n_inner": shape.intermediate_size,
        "n_layer": shape.num_layers,
        "n_head": shape.num_heads,
        "n_positions": shape.context_length,
        "layer_norm_epsilon": shape.norm_eps,
        "activation_function": "gelu_new",
    }


def _llama(shape: Shape) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context_length,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": _scaling(shape.rope_scaling),
        "hidden_act": "silu",
    }
    if shape.architecture == "qwen2":
        return fields | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False}
    if shape.architecture == "qwen3":
        own = {"attention_bias": False, "use_sliding_window": False}
        return fields | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"} | own
    if shape.window is not None:
        # GGUF calls Mistral a llama; its window is all that tells it apart.
        window = {"sliding_window": shape.window}
        return fields | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"} | window
    biases = {"attention_bias": False, "mlp_bias": False}
    return fields | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | biases


def _scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    fields: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.original_context is not None:
        fields["original_max_position_embeddings"] = scaling.original_context
    if scaling.pair_factors:
        # The only kind of Hugging Face's that holds a factor a pair. It has two sets, for short and long texts.
        factors = list(scaling.pair_factors)
        fields |= {"short_factor": factors, "long_factor": factors, "attention_factor": 1.0}
    return fields
