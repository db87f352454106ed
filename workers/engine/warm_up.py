"""First steps of an engine, on rows that nobody asked for, so that no user waits for what first use compiles."""

from dataclasses import replace

from headrace.job import SamplingParams
from headrace.memory.pages import Pages
from headrace.workers.engine.plan import Chunk
from headrace.workers.engine.runner import Steps
from headrace.workers.engine.sequence import Sequence

#: What the steps need: a page each for two rows.
WARM_UP_ROWS, WARM_UP_PAGES, WARM_UP_TOKENS = 2, 1, 8
#: Of a prompt, where an engine takes as long ones: enough for what most steps with prompts use.
WARM_UP_PROMPT_TOKENS = 2048

_GREEDY = SamplingParams(2, 0, 0.0, 0, 1.0, 0.0, 0, (), (), True)
_DRAWN = SamplingParams(2, 0, 1.0, 0, 0.9, 0.0, 0, (), (), True)
_RULED = replace(_DRAWN, repetition_penalty=1.1, logit_bias=((0, 0.5),), logprobs=1)


def warm_up(steps: Steps) -> None:
    """Compute a chunk without a draw; then a decoding row beside a whole prompt, one greedy, one drawn.

    Then the kinds of rows that are drawn by other kernels when they are alone: greedy ones, and ones with rules.
    """
    first, second = (
        Sequence(row, (0,) * length, (), params, frozenset())
        for row, length, params in ((0, 5, _GREEDY), (1, 3, _DRAWN))
    )
    first.pages.page_ids, second.pages.page_ids = [0], [1]
    steps.start((Chunk.next_of(first, 4),)).finish()
    first.num_computed_tokens = 4
    steps.start((Chunk.next_of(first, 1), Chunk.next_of(second, 3))).finish()
    for row, params in enumerate((_GREEDY, _RULED, replace(_RULED, temperature=0.0)), start=2):
        other = Sequence(row, (0,) * 3, (), params, frozenset())
        other.pages.page_ids = [1]
        steps.start((Chunk.next_of(other, 3),)).finish()


def warm_up_prompt(steps: Steps, pages: Pages, num_tokens: int) -> float:
    """Compute a long prompt twice: libraries set themselves up when products of many tokens come for the first time.

    Args:
        steps: without rows.
        pages: none of them is in use, then as now.
        num_tokens: its length.

    Returns:
        What the second step took the device, in milliseconds; 0 where pages are too few, and nothing is computed.
    """
    step_ms = 0.0
    for row in range(2):
        sequence = Sequence(row, (0,) * num_tokens, (), _GREEDY, frozenset())
        if pages.reserve(sequence.pages, num_tokens) == num_tokens:
            step_ms = steps.start((Chunk.next_of(sequence, num_tokens),)).finish().step_ms
        sequence.has_ended = True
        pages.end(sequence.pages)
    return step_ms
