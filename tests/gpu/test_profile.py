from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.gpu.test_families import CASES

from headrace.testing.gpu_profile import is_product, own_kernels, profile_steps
from headrace.testing.small_engines import engine_of
from headrace.testing.tiny_models import KINDS, make_oracle


def test_everything_but_products_and_copies_is_a_kernel_of_ours(tmp_path: Path, device: torch.device) -> None:
    assert {"rms_norm", "rotary_kv", "decode_attention", "prefill_attention", "sample_pick"} <= own_kernels()
    for name in (
        "llama biases heads of 64",
        "qwen3 tied heads of 64",
        "gpt2 tied heads of 64",
        "gptj tied heads of 64",
    ):
        found = next(kind for case, kind in CASES.items() if case.startswith(name.rpartition(" heads")[0]))
        folder = tmp_path / name
        folder.mkdir()
        make_oracle(found, folder)
        made = engine_of(folder, torch.bfloat16, max_rows=8, kv_tokens=2048, step_tokens=256)
        for kind, launches in profile_steps(made, 5):
            names = {one.name for one in launches}
            # A product of few tokens norms them itself.
            assert names & {"rms_norm", "layer_norm", "thin_product"}, kind
            assert not {one.name for one in launches if one.origin == "other"}, (name, kind)


GPT: dict[str, Any] = {"n_embd": 4096, "n_layer": 2, "n_head": 32, "n_inner": 256, "n_positions": 4608}
LLAMA: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4608,
}


@pytest.mark.parametrize("deterministic", [False, True], ids=["fastest", "deterministic"])
@pytest.mark.parametrize(("name", "wide"), [("llama biases", LLAMA), ("gpt2 tied", GPT), ("gptj tied", GPT)])
def test_nothing_else_runs_in_a_step_of_thousands_of_tokens_of_a_wide_model(
    tmp_path: Path, device: torch.device, name: str, wide: dict[str, Any], deterministic: bool
) -> None:
    kind = KINDS[name]
    make_oracle(replace(kind, shape=kind.shape | wide), tmp_path)
    made = engine_of(
        tmp_path,
        torch.bfloat16,
        max_rows=8,
        kv_tokens=9216,
        row_tokens=4608,
        step_tokens=4352,
        deterministic=deterministic,
    )
    profiled = dict(profile_steps(made, 5, long_prompt=4352))
    assert len(profiled) == 4
    for kind_of_step, launches in profiled.items():
        assert not {one.name for one in launches if one.origin == "other"}, kind_of_step
    # Inner layers are computed for all tokens, not only for those whose logits are wanted.
    assert {"layer_norm", "rms_norm"} & {one.name for one in profiled["a long prompt"]}
    assert any(is_product(one.name) for one in profiled["a long prompt"])
