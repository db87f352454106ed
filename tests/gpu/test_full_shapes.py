"""Models in full size with random weights, fed the same tokens as transformers, prompt and answer."""

import gc

import pytest
import torch
from tests.gpu.engines import GREEDY
from transformers import AutoConfig, AutoModelForCausalLM

from headrace.testing.full_shapes import SHAPES, loader
from headrace.testing.state_dict import StateDict
from headrace.workers.engine.device_engine import DeviceEngine, DeviceLimits
from headrace.workers.engine.fusion import Chunk
from headrace.workers.engine.sequence import Sequence

NUM_PROMPT, NUM_ANSWER = 300, 24
#: How two rows' prompts are cut: one early, one late, both in steps of several chunks.
CUTS = ([200, 100], [17, 283])


@pytest.mark.parametrize("name", list(SHAPES))
@torch.inference_mode()
def test_logits_agree_with_transformers_at_full_size(name: str, device: torch.device) -> None:
    needed = {"L8B": 80, "Q06": 12}[name] << 30
    if torch.cuda.get_device_properties(device).total_memory < needed:
        pytest.skip(f"weights in three forms want {needed >> 30} GiB")
    config = SHAPES[name]
    num_tokens = NUM_PROMPT + NUM_ANSWER
    ids = torch.randint(0, config["vocab_size"], (2, num_tokens), generator=torch.Generator().manual_seed(5))
    oracle_config = AutoConfig.for_model(**config)
    with torch.device(device):
        oracle = AutoModelForCausalLM.from_config(oracle_config, dtype=torch.bfloat16).eval()
    ours = teacher_forced(
        DeviceEngine(
            loader(config, StateDict(oracle.state_dict())),
            device,
            torch.bfloat16,
            DeviceLimits(max_rows=4, row_tokens=1024, step_tokens=512, kv_tokens=2048),
        ),
        ids,
    )
    # Of transformers, the logits at the same places: behind each chunk, and behind each token of the answer.
    theirs = torch.stack(
        [
            row[[cut[0] - 1, *range(NUM_PROMPT - 1, num_tokens)]]
            for row, cut in zip(oracle(ids.to(device)).logits, CUTS, strict=True)
        ]
    ).float()
    oracle.float()
    truth = torch.stack(
        [
            row[[cut[0] - 1, *range(NUM_PROMPT - 1, num_tokens)]]
            for row, cut in zip(oracle(ids.to(device)).logits, CUTS, strict=True)
        ]
    )
    own, fair = (ours - truth).abs(), (theirs - truth).abs()
    print(f"{name}: error {own.max():.3g} (mean {own.mean():.3g}), transformers' {fair.max():.3g} ({fair.mean():.3g})")
    assert truth.std() > 0.1
    assert own.max() <= 2 * fair.max()
    assert own.mean() <= 1.2 * fair.mean()
    del oracle
    gc.collect()
    torch.cuda.empty_cache()


def teacher_forced(made: DeviceEngine, ids: torch.Tensor) -> torch.Tensor:
    """Compute two rows whose next token is given and not drawn: fp32 ``[2, 2 + NUM_ANSWER, vocab]``."""
    rows = [Sequence(row, tuple(ids[row].tolist()), (), GREEDY, frozenset()) for row in range(2)]
    seen: list[list[torch.Tensor]] = [[], []]
    with torch.cuda.stream(made.steps.stream):
        starts = [0, 0]
        for step in range(2 + NUM_ANSWER):
            lengths = [CUTS[row][step] if step < 2 else 1 for row in range(2)]
            chunks = [
                Chunk(*each, samples=True, is_prefill=step < 2) for each in zip(rows, starts, lengths, strict=True)
            ]
            for chunk in chunks:
                assert made.pool.pages.reserve(chunk.sequence.pages, chunk.end) >= chunk.end
            made.steps.rows.forget()  # tokens are given, not drawn: rows take their places anew, in this order
            logits, _ = made.steps.compute(chunks)
            assert logits is not None
            for row, line in enumerate(logits.float()):
                seen[row].append(line)
            starts = [chunk.end for chunk in chunks]
    torch.cuda.synchronize()
    return torch.stack([torch.stack(lines) for lines in seen])
