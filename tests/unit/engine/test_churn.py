"""Exactness under churn: whatever joins, leaves, shares and gives way, a row gets the tokens that it gets alone."""

import random
from collections.abc import Callable
from typing import Any

from headrace.job import SamplingParams
from headrace.workers.channel import Add, Drop
from headrace.workers.engine.engine import Engine

NUM_REQUESTS = 500
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.8},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 5},
    {"temperature": 1.5, "ignore_eos": False},
    {"temperature": 0.9, "repetition_penalty": 1.4, "presence_penalty": 0.5},
)


def requests(params: Callable[..., SamplingParams], rng: random.Random) -> list[Add]:
    """Random lengths and seeds; a third begins with one of a few texts, and some prompts come several times."""
    texts = [tuple(rng.randrange(3, 97) for _ in range(length)) for length in (9, 16, 37)]
    adds: list[Add] = []
    for row in range(NUM_REQUESTS):
        sampling = params(max_tokens=rng.randint(1, 24), seed=rng.randrange(1 << 40), **rng.choice(KINDS))
        if adds and rng.random() < 0.15:
            adds.append(Add(row, rng.choice(adds[-10:]).prompt_ids, (), sampling))
            continue
        text = rng.choice(texts) if rng.random() < 0.4 else ()
        adds.append(Add(row, (*text, *(rng.randrange(3, 97) for _ in range(rng.randint(1, 40)))), (), sampling))
    return adds


def solo(engine: Engine, add: Add) -> list[int]:
    engine.add(add)
    tokens: list[int] = []
    while engine.has_rows:
        tokens += [token_id for _, token_id, _ in engine.step().tokens]
    return tokens


def test_500_requests_get_the_tokens_that_they_get_alone_and_every_page_comes_back(
    make_engine: Callable[..., Engine], params: Callable[..., SamplingParams]
) -> None:
    rng = random.Random(0)
    adds = requests(params, rng)
    # A memory for about three of the longest rows: growing rows push younger ones out again and again.
    engine = make_engine(max_rows=12, kv_tokens=260, step_tokens=40, page_size=4)
    tokens: dict[int, list[int]] = {add.row: [] for add in adds}
    cancelled: set[int] = set()
    arriving = list(adds)
    while arriving or engine.has_rows:
        for _ in range(rng.choice((0, 0, 1, 5))):
            if arriving:
                engine.add(arriving.pop(0))
        if rng.random() < 0.05 and len(arriving) < NUM_REQUESTS:
            row = rng.randrange(NUM_REQUESTS - len(arriving))
            cancelled.add(row)
            engine.drop(Drop((row,)))
        if engine.has_rows:
            for row, token_id, finish in engine.step().tokens:
                assert finish != "error"
                tokens[row].append(token_id)
    assert engine.num_used_pages == 0
    assert engine.num_preemptions > 30
    num_prompt = sum(len(add.prompt_ids) for add in adds)
    assert engine.num_prefilled_tokens < 0.9 * num_prompt, "beginnings are shared, and found again after a preemption"

    # A memory of its own, in which nothing is left of any row before.
    alone = make_engine(max_rows=1, kv_tokens=4096, step_tokens=4096, page_size=4096)
    for add in adds:
        expected = solo(alone, add)
        if add.row in cancelled:
            assert tokens[add.row] == expected[: len(tokens[add.row])]
        else:
            assert tokens[add.row] == expected
    assert cancelled
