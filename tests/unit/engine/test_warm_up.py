from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.memory.pages import Pages
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.plan import Chunk
from headrace.workers.engine.warm_up import rehearsed_steps, warm_up_prompt


@torch.inference_mode()
def test_a_long_prompt_is_computed_twice_and_leaves_nothing_behind(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    pages, steps = engine._pages, engine._runner.steps
    seen: list[Chunk] = []
    start = steps.start

    def noted(chunks: tuple[Chunk, ...]) -> object:
        seen.extend(chunks)
        return start(chunks)

    steps.start = noted  # type: ignore[method-assign, assignment]
    assert warm_up_prompt(steps, pages, 100) > 0
    assert [(chunk.start, chunk.num_tokens, chunk.samples) for chunk in seen] == [(0, 100, True)] * 2
    assert (pages.num_used, pages.num_kept) == (0, 0), "who comes later finds no prompt that nobody asked for"


@pytest.mark.parametrize("num_tokens", [17, 1000])
def test_where_there_are_too_few_pages_nothing_is_computed(make_engine: Callable[..., Engine], num_tokens: int) -> None:
    pages = Pages(1, 16)
    assert warm_up_prompt(make_engine()._runner.steps, pages, num_tokens) == 0
    assert pages.num_used == 0


@given(
    max_rows=st.integers(1, 300),
    step_tokens=st.integers(1, 9000),
    row_tokens=st.integers(1, 9000),
    page=st.sampled_from((16, 64)),
)
def test_rehearsed_steps_keep_to_the_limits_and_reach_them(
    max_rows: int, step_tokens: int, row_tokens: int, page: int
) -> None:
    steps = list(rehearsed_steps(max_rows, step_tokens, row_tokens, page))
    longest = min(step_tokens, max_rows * row_tokens)
    prompts: set[int] = set()
    beside: set[int] = set()
    for chunks in steps:
        num_decoding = sum(chunk.decodes for chunk in chunks)
        assert all(chunk.decodes for chunk in chunks[:num_decoding]), "those that decode come first"
        assert len({chunk.sequence.row for chunk in chunks}) == len(chunks) <= max_rows
        for chunk in chunks:
            assert chunk.end <= row_tokens
            assert len(chunk.sequence.pages.page_ids) == -(-chunk.end // page)
        if num_decoding < len(chunks):
            num_tokens = sum(chunk.num_tokens for chunk in chunks)
            assert num_tokens <= longest + 1
            (beside if num_decoding else prompts).add(num_tokens)
    assert max(len(chunks) for chunks in steps if chunks[-1].decodes) == max_rows
    if longest <= row_tokens:
        assert longest in {1, *prompts}
        assert set(range(2, min(32, longest) + 1)) <= prompts
        assert max_rows == 1 or longest <= 32 or longest + 1 in beside
