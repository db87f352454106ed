"""Logits of models in full size with random weights, fed the same tokens as transformers, prompt and answer.

Flash-attention's rule says how far ours may be off: by twice what transformers is off in the same dtype, both beside
transformers in fp32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from headrace.testing.full_shapes import SHAPES, loader
from headrace.testing.small_engines import GREEDY
from headrace.testing.state_dict import StateDict
from headrace.workers.engine.device_engine import DeviceEngine, DeviceLimits
from headrace.workers.engine.plan import Chunk
from headrace.workers.engine.sequence import Sequence

#: What a GPU must have for weights in three forms: ours, transformers', and transformers' in fp32.
NEEDED_BYTES = {"L8B": 88 << 30, "Q06": 20 << 30}
#: How many times transformers' greatest and mean errors ours may be.
MOST_GREATEST, MOST_MEAN = 2.0, 1.2
#: Standard deviation of logits, below which errors would say nothing.
LEAST_SPREAD = 0.1


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class LogitErrors:
    """How far logits are from fp32's, ours and transformers' in bf16.

    Attributes:
        num_rows: that were computed together.
        greatest: of ours.
        mean: of ours.
        peer_greatest: of transformers'.
        peer_mean: of transformers'.
        spread: standard deviation of fp32's logits.
    """

    num_rows: int
    greatest: float
    mean: float
    peer_greatest: float
    peer_mean: float
    spread: float

    @property
    def is_fair(self) -> bool:
        """Whether ours are as near as the rule asks, of logits that differ at all."""
        is_near = self.greatest <= MOST_GREATEST * self.peer_greatest and self.mean <= MOST_MEAN * self.peer_mean
        return is_near and self.spread > LEAST_SPREAD

    def __str__(self) -> str:
        return (
            f"{self.num_rows} rows: error {self.greatest:.3g} (mean {self.mean:.3g}), transformers' "
            f"{self.peer_greatest:.3g} ({self.peer_mean:.3g}), of logits that spread by {self.spread:.3g}"
        )


def together(num_rows: int) -> Fed:
    """Rows with prompts of 2 to 12 tokens, which decode three steps together."""
    return Fed(tuple((2 + 5 * row % 11,) for row in range(num_rows)), 3)


#: Two rows, one cut early and one late, in steps of several chunks: few tokens decode. Then as many as cuBLAS would be
#: slower for, the least and the most, and more than those.
CASES = (Fed(((200, 100), (17, 283)), 24), together(32), together(128), together(256))


@torch.inference_mode()
def logit_errors(name: str, device: torch.device) -> Iterator[LogitErrors]:
    """Compute all ``CASES`` of a model in bf16 on a GPU with ``NEEDED_BYTES`` of memory.

    Args:
        name: one of ``SHAPES``.
        device: the current GPU.
    """
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
        errors = (float(value) for value in (own.max(), own.mean(), fair.max(), fair.mean(), truth.std()))
        yield LogitErrors(len(fed.cuts), *errors)


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
                if made.pool.pages.reserve(chunk.sequence.pages, chunk.end) < chunk.end:
                    raise RuntimeError(f"no pages for {chunk.end} tokens of row {chunk.sequence.row}: raise kv_tokens")
            made.steps.rows.forget()  # tokens are given, not drawn: rows take their places anew, in this order
            logits, _ = made.steps.compute(chunks)
            if logits is None:
                raise RuntimeError("a step in which every chunk samples gave no logits")
            seen.append(logits.to(torch.float32, copy=True))
            starts = [chunk.end for chunk in chunks]
    torch.cuda.synchronize()
    for row in rows:
        made.pool.pages.end(row.pages)
    return torch.stack(seen, dim=1)
