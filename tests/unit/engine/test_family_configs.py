"""What each family reads in config.json, and what it refuses by name."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from headrace.errors import ModelError
from headrace.workers.engine.models.gpt_config import parse_gpt2, parse_gptj
from headrace.workers.engine.models.llama_config import parse_llama
from headrace.workers.engine.models.mistral import parse_mistral
from headrace.workers.engine.models.qwen2 import parse_qwen2
from headrace.workers.engine.models.qwen3 import parse_qwen3

Parse = Callable[[Mapping[str, Any]], Any]
LLAMA: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}
GPT: dict[str, Any] = {"vocab_size": 97, "n_embd": 512, "n_layer": 2, "n_head": 4, "n_positions": 128}
FAMILIES: dict[Parse, dict[str, Any]] = {
    parse_llama: LLAMA,
    parse_mistral: LLAMA,
    parse_qwen2: LLAMA,
    parse_qwen3: LLAMA,
    parse_gpt2: GPT,
    parse_gptj: GPT,
}


@pytest.mark.parametrize("parse", FAMILIES)
def test_what_is_not_known_is_refused_by_name(parse: Parse) -> None:
    parse(FAMILIES[parse])
    with pytest.raises(ModelError, match=r"not known: final_logit_softcapping, query_pre_attn_scalar"):
        parse(FAMILIES[parse] | {"query_pre_attn_scalar": 256, "final_logit_softcapping": 30.0})
    with pytest.raises(ModelError, match="quantization_config"):
        parse(FAMILIES[parse] | {"quantization_config": {"bits": 4}})


@pytest.mark.parametrize("parse", FAMILIES)
def test_what_is_null_or_says_nothing_about_the_computation_passes(parse: Parse) -> None:
    inert = {"attention_dropout": 0.1, "torch_dtype": "bfloat16", "transformers_version": "4.40", "use_cache": False}
    assert parse(FAMILIES[parse] | inert | {"query_pre_attn_scalar": None}) == parse(FAMILIES[parse])


@pytest.mark.parametrize("parse", FAMILIES)
def test_a_field_of_another_type_or_a_missing_one_is_named(parse: Parse) -> None:
    width = "n_embd" if parse in (parse_gpt2, parse_gptj) else "hidden_size"
    for value in ("64", 64.5, True, [64]):
        with pytest.raises(ModelError, match=width):
            parse(FAMILIES[parse] | {width: value})
    with pytest.raises(ModelError, match=f"'{width}' is missing"):
        parse({name: value for name, value in FAMILIES[parse].items() if name != width})


@pytest.mark.parametrize(
    ("parse", "changes", "named"),
    [
        (parse_llama, {"sliding_window": 4096}, "sliding_window 4096"),
        (parse_llama, {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        (parse_llama, {"layer_types": ["full_attention"] * 3}, "layer_types"),
        (parse_llama, {"original_max_position_embeddings": 32}, "original_max_position_embeddings"),
        (parse_llama, {"head_dim": 3}, "heads of 3 numbers"),
        (parse_mistral, {"attention_bias": True}, "attention_bias True"),
        (parse_mistral, {"sliding_window": 0}, "sliding_window 0"),
        (parse_mistral, {"sliding_window": None, "layer_types": ["sliding_attention"] * 3}, "layer_types"),
        (parse_qwen2, {"attention_bias": False}, "attention_bias False"),
        (parse_qwen2, {"use_mrope": True}, "use_mrope True"),
        (parse_qwen2, {"layer_types": ["sliding_attention"] * 3}, "there is no sliding_window"),
        (parse_qwen2, {"layer_types": ["full_attention"] * 2}, "2 layer_types for 3 layers"),
        (parse_qwen2, {"layer_types": ["chunked_attention"] * 3}, "layer_types 'chunked_attention'"),
        (parse_qwen3, {"use_sliding_window": True, "sliding_window": 0}, "sliding_window 0"),
        (parse_qwen3, {"mlp_bias": True}, "mlp_bias True"),
        (parse_gpt2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (parse_gpt2, {"scale_attn_weights": False}, "scale_attn_weights"),
        (parse_gpt2, {"add_cross_attention": True}, "add_cross_attention"),
        (parse_gpt2, {"activation_function": "relu"}, "activation_function 'relu'"),
        (parse_gpt2, {"n_head": 3}, "3 heads do not divide n_embd 512"),
        (parse_gpt2, {"rotary_dim": 64}, "rotary_dim"),
        (parse_gptj, {"rotary": False}, "rotary False"),
        (parse_gptj, {"rotary_dim": None}, "rotary_dim None"),
        (parse_gptj, {"rotary_dim": 130}, "rotary_dim 130 does not fit heads of 128"),
        (parse_gptj, {"rotary_dim": 7}, "rotary_dim 7"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(parse: Parse, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        parse(FAMILIES[parse] | changes)


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic' is none of default, linear, llama3, yarn, longrope"),
        ({"rope_type": "linear"}, "'factor' is missing"),
        ({"rope_type": "yarn", "factor": 2.0, "ramp": 3}, "rope parameters.*ramp"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}, "short_factor unlike long_factor"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 3, "long_factor": [1.0] * 3}, "3 short_factor for 1 pair"),
        ({"mrope_section": [16, 24]}, "mrope_section"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_theta": "fast"}, "rope_theta 'fast'"),
    ],
)
def test_a_rotation_that_would_be_computed_wrongly_is_refused_by_name(rope: dict[str, Any], named: str) -> None:
    for name in ("rope_parameters", "rope_scaling"):
        with pytest.raises(ModelError, match=named):
            parse_llama(LLAMA | {name: rope})


def test_what_a_family_takes_where_nothing_is_said() -> None:
    llama, mistral, qwen2, qwen3 = (parse(LLAMA) for parse in (parse_llama, parse_mistral, parse_qwen2, parse_qwen3))
    assert [config.num_kv_heads for config in (llama, mistral, qwen2, qwen3)] == [32, 8, 32, 32]
    assert [config.head_dim for config in (llama, mistral, qwen2, qwen3)] == [2, 2, 2, 128]
    assert parse_mistral(LLAMA | {"num_key_value_heads": None}).num_kv_heads == 32
    assert mistral.windows == (4096,) * 3
    assert llama.windows == qwen2.windows == qwen3.windows == (None,) * 3
    assert parse_gpt2(GPT).tied
    assert not parse_gptj(GPT).tied
    assert parse_gptj(GPT).rope.rotary_dim == 64
    assert parse_gpt2(GPT).intermediate_size == 2048


@pytest.mark.parametrize("parse", [parse_qwen2, parse_qwen3])
def test_qwen_layers_slide_as_they_are_told_to(parse: Parse) -> None:
    sliding = LLAMA | {"use_sliding_window": True, "sliding_window": 7}
    assert parse(sliding).windows == (None,) * 3
    assert parse(sliding | {"max_window_layers": 1}).windows == (None, 7, 7)
    assert parse(sliding | {"max_window_layers": 1, "use_sliding_window": False}).windows == (None,) * 3
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    assert parse(sliding | {"layer_types": types}).windows == (7, None, 7)
    assert parse(sliding | {"sliding_window": None, "max_window_layers": 1}).windows == (None,) * 3


def test_older_and_newer_forms_of_a_rotation_mean_the_same() -> None:
    linear = {"rope_type": "linear", "factor": 4.0}
    now = parse_llama(LLAMA | {"rope_parameters": linear | {"rope_theta": 500.0}})
    assert parse_llama(LLAMA | {"rope_theta": 500, "rope_scaling": linear}) == now
    assert parse_llama(LLAMA | {"rope_theta": 500, "rope_scaling": {"type": "linear", "factor": 4}}) == now
