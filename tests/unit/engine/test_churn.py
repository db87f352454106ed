"""Exactness under churn: whatever joins, leaves, shares and gives way, a row gets the tokens that it gets alone."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from headrace.job import SamplingParams
from headrace.testing.churn import churn, requests, solo
from headrace.workers.channel import Add
from headrace.workers.engine import assembly
from headrace.workers.engine.engine import Engine


@pytest.fixture
def make_engine(make_any_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    return make_any_engine


@pytest.fixture(scope="module")
def known() -> dict[Add, list[int]]:
    """What rows got alone; they are the same for both kinds of engines."""
    return {}


def check(
    make_engine: Callable[..., Engine],
    families: list[list[Add]],
    tokens: dict[int, list[int]],
    cancelled: set[int],
    known: dict[Add, list[int]],
) -> None:
    """Compare with what each row gets alone, in a memory of its own, in which nothing is left of any row before."""
    alone = make_engine(max_rows=1, kv_tokens=4096, step_tokens=4096, page_size=4096)
    for add in (add for family in families for add in family):
        if add not in known:
            known[add] = solo(alone, add)
        expected = known[add]
        if add.row in cancelled:
            assert tokens[add.row] == expected[: len(tokens[add.row])]
        else:
            assert tokens[add.row] == expected
    assert cancelled


def test_500_requests_get_the_tokens_that_they_get_alone_and_every_page_comes_back(
    make_engine: Callable[..., Engine], params: Callable[..., SamplingParams], known: dict[Add, list[int]]
) -> None:
    rng = random.Random(0)
    families = requests(params, rng)
    adds = [add for family in families for add in family]
    # A memory for about three of the longest rows: growing rows push younger ones out again and again.
    engine = make_engine(max_rows=12, kv_tokens=260, step_tokens=40, page_size=4)
    tokens, cancelled = churn(engine, families, rng)
    assert engine.num_used_pages == 0
    assert engine.num_preemptions > 30
    num_prompt = sum(len(add.prompt_ids) for add in adds)
    assert engine.num_prefilled_tokens < 0.9 * num_prompt, "beginnings are shared, and found again after a preemption"

    check(make_engine, families, tokens, cancelled, known)
    siblings = [family for family in families if len(family) > 1 and family[0].params.temperature > 0.9]
    assert sum(len(family) for family in siblings) > 100
    texts = [[tuple(tokens[add.row]) for add in family] for family in siblings if family[0].params.max_tokens > 8]
    assert sum(len(set(family)) > 1 for family in texts) > 0.9 * len(texts), "each child has random numbers of its own"


def test_a_pool_too_small_for_long_steps_moves_pages_and_no_row_notices(
    make_engine: Callable[..., Engine],
    params: Callable[..., SamplingParams],
    known: dict[Add, list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Chunks of four pages, and hardly one beside those of the keys and values: every long step must be given room."""
    rng = random.Random(1)
    families = requests(params, rng, 120)
    sizes = assembly.needs
    monkeypatch.setattr(assembly, "needs", lambda *args: replace(sizes(*args), step_bytes=1))
    engine = make_engine(max_rows=12, kv_tokens=260, step_tokens=64, chunk_bytes=4096)
    assert engine.room is not None
    # What a long step took is given back at once, and rows grow into it before the next one.
    engine.room.pool.workspace._max_idle_steps = 2
    tokens, cancelled = churn(engine, families, rng)
    info = engine.room.pool.memory_info()
    assert info.num_chunks == 18
    assert info.num_shuffles > 10
    assert engine.num_used_pages == 0
    check(make_engine, families, tokens, cancelled, known)


def test_pages_that_are_moved_at_random_between_steps_change_no_token(
    make_engine: Callable[..., Engine], params: Callable[..., SamplingParams], known: dict[Add, list[int]]
) -> None:
    rng = random.Random(2)
    families = requests(params, rng, 120)
    engine = make_engine(max_rows=12, kv_tokens=400, step_tokens=40, chunk_bytes=4096)
    assert engine.room is not None
    pool = engine.room.pool

    def shuffle() -> None:
        if rng.random() < 0.5:
            num_chunks = pool.memory_info().num_free_chunks + rng.randint(1, 4)
            pool.free_chunks(num_chunks, adjacent=rng.random() < 0.5)

    tokens, cancelled = churn(engine, families, rng, shuffle)
    assert pool.memory_info().num_moved_pages > 150
    assert engine.num_used_pages == 0
    check(make_engine, families, tokens, cancelled, known)
