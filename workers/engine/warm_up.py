"""First steps of an engine, on rows that nobody asked for, so that no user waits for what first use compiles."""

from dataclasses import replace

from headrace.job import SamplingParams
from headrace.workers.engine.fusion import Chunk
from headrace.workers.engine.runner import Steps
from headrace.workers.engine.sequence import Sequence

#: What the steps need: a page each for two rows.
WARM_UP_ROWS, WARM_UP_PAGES, WARM_UP_TOKENS = 2, 1, 8

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
