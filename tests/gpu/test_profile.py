from pathlib import Path

import torch
from tests.gpu.test_families import CASES

from headrace.testing.gpu_profile import own_kernels, profile_steps
from headrace.testing.small_engines import engine_of
from headrace.testing.tiny_models import make_oracle


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
