"""Models in full size with random weights, fed the same tokens as transformers, prompt and answer."""

import gc
from dataclasses import dataclass

import pytest
import torch
from tests.gpu.engines import GREEDY
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from headrace.testing.full_shapes import SHAPES, loader
from headrace.testing.state_dict import StateDict
from headrace.workers.engine.device_engine import DeviceEngine, DeviceLimits
from headrace.workers.engine.plan import Chunk
from headrace.workers.engine.sequence import Sequence


@dataclass(frozen=True)
class Fed:
    """Rows whose tokens are given: prompts in chunks, then an answer token by token, all rows' together.

    Attributes:
        cuts: lengths of each row's chunks, as many for every row.
        num_answer: steps in which all rows decode.
    """

    cuts: tuple[tuple[int, ...], ...]
    num_answer: int

    @property
    def num_tokens(self) -> int:
        """Of the longest row."""
        return max(map(sum, self.cuts)) + self.num_answer

    def lengths(self, step: int) -> list[int]:
        """What each row brings to a step."""
        return [cuts[step] if step < len(cuts) else 1 for cuts in self.cuts]


def together(num_rows: int) -> Fed:
    """Rows with prompts of 2 to 12 tokens, which decode three steps together."""
    return Fed(tuple((2 + 5 * row % 11,) for row in range(num_rows)), 3)


#: Two rows, one cut early and one late, in steps of several chunks: few tokens decode. Then as many as cuBLAS would be
#: slower for, the least and the most, and more than those.
CASES = (Fed(((200, 100), (17, 283)), 24), together(32), together(128), together(256))


@pytest.mark.parametrize("name", list(SHAPES))
@torch.inference_mode()
def test_logits_agree_with_transformers_at_full_size(name: str, device: torch.device) -> None:
    needed = {"L8B": 88, "Q06": 20}[name] << 30
    if torch.cuda.get_device_properties(device).total_memory < needed:
        pytest.skip(f"weights in three forms want {needed >> 30} GiB")
    config = SHAPES[name]
    chance = torch.Generator().manual_seed(5)
    ids = [torch.randint(0, config["vocab_size"], (len(fed.cuts), fed.num_tokens), generator=chance) for fed in CASES]
    with torch.device(device):
        oracle = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16).eval()
    engine = DeviceEngine(
        loader(config, StateDict(oracle.state_dict())),
        device,
        torch.bfloat16,
        DeviceLimits(max_rows=256, row_tokens=1024, step_tokens=2048, kv_tokens=8192),
    )
    ours = [teacher_forced(engine, fed, tokens) for fed, tokens in zip(CASES, ids, strict=True)]
    theirs = [by_transformers(oracle, fed, tokens).float() for fed, tokens in zip(CASES, ids, strict=True)]
    oracle.float()
    for fed, tokens, own_logits, peer_logits in zip(CASES, ids, ours, theirs, strict=True):
        truth = by_transformers(oracle, fed, tokens)
        own, fair = (own_logits - truth).abs(), (peer_logits - truth).abs()
        print(
            f"{name}, {len(fed.cuts)} rows: error {own.max():.3g} (mean {own.mean():.3g}), "
            f"transformers' {fair.max():.3g} ({fair.mean():.3g})"
        )
        assert truth.std() > 0.1
        assert own.max() <= 2 * fair.max(), f"{len(fed.cuts)} rows"
        assert own.mean() <= 1.2 * fair.mean(), f"{len(fed.cuts)} rows"
    del oracle, engine
    gc.collect()
    torch.cuda.empty_cache()


def by_transformers(oracle: PreTrainedModel, fed: Fed, ids: Tensor) -> Tensor:
    """The logits behind each chunk, and behind each token of the answer: ``[rows, steps, vocab]``."""
    logits = oracle(ids.to(oracle.device)).logits
    steps = range(len(fed.cuts[0]) + fed.num_answer)
    ends = torch.tensor([fed.lengths(step) for step in steps], device=logits.device).cumsum(0).T
    chosen: Tensor = logits[torch.arange(len(ids), device=logits.device)[:, None], ends - 1]
    return chosen


def teacher_forced(made: DeviceEngine, fed: Fed, ids: Tensor) -> Tensor:
    """Compute rows whose next token is given and not drawn: fp32 ``[rows, steps, vocab]``."""
    rows = [Sequence(index, tuple(row), (), GREEDY, frozenset()) for index, row in enumerate(ids.tolist())]
    num_chunks, starts = len(fed.cuts[0]), [0] * len(rows)
    seen: list[Tensor] = []
    with torch.cuda.stream(made.steps.stream):
        for step in range(num_chunks + fed.num_answer):
            chunks = [
                Chunk(*each, samples=True, is_prefill=step < num_chunks)
                for each in zip(rows, starts, fed.lengths(step), strict=True)
            ]
            for chunk in chunks:
                assert made.pool.pages.reserve(chunk.sequence.pages, chunk.end) >= chunk.end
            made.steps.rows.forget()  # tokens are given, not drawn: rows take their places anew, in this order
            logits, _ = made.steps.compute(chunks)
            assert logits is not None
            seen.append(logits.to(torch.float32, copy=True))
            starts = [chunk.end for chunk in chunks]
    torch.cuda.synchronize()
    for row in rows:
        made.pool.pages.end(row.pages)
    return torch.stack(seen, dim=1)
