"""Models in full size with random weights, fed the same tokens as transformers, prompt and answer."""

import gc

import pytest
import torch

from headrace.testing.full_shapes import SHAPES
from headrace.testing.teacher_forcing import CASES, NEEDED_BYTES, logit_errors


@pytest.mark.parametrize("name", list(SHAPES))
def test_logits_agree_with_transformers_at_full_size(name: str, device: torch.device) -> None:
    needed = NEEDED_BYTES[name]
    if torch.cuda.get_device_properties(device).total_memory < needed:
        pytest.skip(f"weights in three forms want {needed >> 30} GiB")
    found = list(logit_errors(name, device))
    print(f"{name}, " + "; ".join(map(str, found)))
    assert len(found) == len(CASES)
    for errors in found:
        assert errors.is_fair, str(errors)
    gc.collect()
    torch.cuda.empty_cache()
