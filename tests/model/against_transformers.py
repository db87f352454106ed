"""What every family is held to on every device: transformers' own logits, and the tokens it generates."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from headrace.job import SamplingParams
from headrace.testing.tiny_models import VOCAB
from headrace.workers.channel import Add, Tokens
from headrace.workers.engine.engine import Engine

GREEDY = SamplingParams(16, 0, 0.0, 0, 1.0, 0.0, 0, (), (), True)
#: Of chunks that a prompt of 120 tokens is cut into.
CUTS = ([120], [50, 1, 1, 40, 28], [1] * 10 + [110])

#: Of a prompt that is computed in chunks of these lengths: the logits behind each ``[chunks, vocab]``.
LogitsInChunks = Callable[[tuple[int, ...], list[int]], torch.Tensor]


def prompts(*lengths: int) -> list[tuple[int, ...]]:
    """Random prompts, always the same."""
    generator = torch.Generator().manual_seed(3)
    return [tuple(torch.randint(0, VOCAB, (length,), generator=generator).tolist()) for length in lengths]


def assert_prefill_logits(oracle: PreTrainedModel, logits_in_chunks: LogitsInChunks, lengths: list[int]) -> None:
    """A prompt's logits are the oracle's, however it is cut."""
    (prompt,) = prompts(120)
    with torch.inference_mode():
        expected = oracle(torch.tensor([prompt])).logits[0]
    ends = torch.tensor(lengths).cumsum(0) - 1
    assert expected.std() > 0.3, "logits that are all alike would prove nothing"
    assert (logits_in_chunks(prompt, lengths).cpu() - expected[ends]).abs().max() < 1e-4


def assert_greedy_tokens(oracle: PreTrainedModel, engine: Engine) -> None:
    """Rows that are fused, one arrival a step, more than may run at once and longer than a step, are the oracle's."""
    rows = prompts(1, 90, 5, 33, 24, 25)
    tokens: list[list[int]] = [[] for _ in rows]
    for row, prompt in enumerate(rows):
        engine.add(Add(row, prompt, (), GREEDY))
        _collect(engine.step(), tokens)
    while engine.has_rows:
        _collect(engine.step(), tokens)
    for prompt, output in zip(rows, tokens, strict=True):
        generated = oracle.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=GREEDY.max_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert output == generated[0, len(prompt) :].tolist()


def _collect(step: Tokens, tokens: list[list[int]]) -> None:
    for row, token_id, finish in step.tokens:
        assert finish != "error"
        tokens[row].append(token_id)
