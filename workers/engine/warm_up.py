"""First steps of an engine, on rows that nobody asked for, so that no user waits for what first use compiles."""

from collections.abc import Iterator
from dataclasses import replace

from headrace.job import SamplingParams
from headrace.memory.pages import Pages
from headrace.workers.engine.decode_graphs import padded_places
from headrace.workers.engine.plan import Chunk
from headrace.workers.engine.runner import Steps
from headrace.workers.engine.sequence import Sequence

#: What the steps need: a page each for two rows.
WARM_UP_ROWS, WARM_UP_PAGES, WARM_UP_TOKENS = 2, 1, 8
#: Of a prompt, where an engine takes as long ones: enough for what most steps with prompts use.
WARM_UP_PROMPT_TOKENS = 2048

# Tokens of a rehearsed step's prompts. Products of few tokens have kernels for almost every number of them; where ours
# end, behind 128 and 256, others begin.
_EACH = range(1, 33)
_SOME = (48, 64, 96, 128, 129, 192, 256, 257, 320, 384, 512, 768, 1024, 2048, 3072, 4096)

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


def rehearsed_steps(max_rows: int, step_tokens: int, row_tokens: int, page_size: int) -> Iterator[tuple[Chunk, ...]]:
    """Steps of sizes of all kinds, to be rehearsed: which kernels a step needs hangs on how long it is.

    Rows that decode; prompts; and prompts beside a row that decodes.

    Args:
        max_rows: rows of a step at most.
        step_tokens: tokens of a step's prompts at most.
        row_tokens: of a row at most.
        page_size: tokens of a page; all rows have the first page, for nothing is computed.
    """
    for num_rows in sorted({padded_places(count, max_rows) for count in range(1, max_rows + 1)}):
        yield tuple(_chunk(row, 1, page_size) for row in range(num_rows))
    longest = min(step_tokens, max_rows * row_tokens)
    for num_tokens in sorted({min(each, longest) for each in (*_EACH, *_SOME, longest)}):
        lengths = [min(row_tokens, num_tokens - first) for first in range(0, num_tokens, row_tokens)]
        # The short one first: one token alone decodes.
        yield tuple(_chunk(row, length, page_size) for row, length in enumerate(lengths[::-1]))
        if num_tokens not in _EACH and len(lengths) < max_rows:
            yield tuple(_chunk(row, length, page_size) for row, length in enumerate((1, *lengths[::-1])))


def _chunk(row: int, num_tokens: int, page_size: int) -> Chunk:
    sequence = Sequence(row, (0,) * num_tokens, (), _GREEDY, frozenset())
    sequence.pages.page_ids = [0] * -(-num_tokens // page_size)
    return Chunk.next_of(sequence, num_tokens)
