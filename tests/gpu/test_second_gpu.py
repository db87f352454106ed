"""An engine computes on the GPU that it was given, whichever torch thinks is current."""

from functools import partial
from pathlib import Path

import pytest
import torch
from tests.gpu.test_families import CASES
from tests.model.against_transformers import prompts

from headrace.testing.small_engines import GREEDY
from headrace.testing.tiny_models import make_oracle
from headrace.workers.channel import Add
from headrace.workers.engine.device_engine import DeviceEngine, DeviceLimits
from headrace.workers.engine.loading import load


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_an_engine_on_the_second_gpu_brings_the_same_tokens(tmp_path: Path) -> None:
    make_oracle(next(iter(CASES.values())), tmp_path)
    limits = DeviceLimits(max_rows=4, row_tokens=256, step_tokens=64, kv_tokens=1024)
    found = []
    for index in (0, 1):
        made = DeviceEngine(partial(load, tmp_path), torch.device("cuda", index), torch.float32, limits)
        tokens: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts(5, 90, 33)):
            made.engine.add(Add(row, prompt, (), GREEDY))
        while made.engine.has_rows:
            for row, token_id, finish in made.engine.step().tokens:
                assert finish != "error"
                tokens.setdefault(row, []).append(token_id)
        assert made.pool.kv_cache.storage.device.index == index
        found.append(tokens)
    assert found[0] == found[1]
