"""Requests that join, leave, share beginnings and give way to each other, and what each of them gets alone."""

import random
from collections.abc import Callable
from typing import Any

from headrace.job import Job, SamplingParams
from headrace.workers.channel import Add, Drop
from headrace.workers.engine.engine import Engine

#: Every kind of sampling.
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.8},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 5},
    {"temperature": 1.5, "ignore_eos": False},
    {"temperature": 0.9, "repetition_penalty": 1.4, "presence_penalty": 0.5},
    {"temperature": 1.1, "min_p": 0.02, "frequency_penalty": 0.7},
    {"temperature": 1.0, "min_tokens": 5, "stop_token_ids": tuple(range(3, 40)), "logprobs": 2},
    {"temperature": 1.3, "logit_bias": ((7, 3.0), (9, -50.0)), "bad_words": ((11,), (12, 13), (7, 7))},
)
#: Results of one request that come together.
MOST_CHILDREN = 5


def requests(params: Callable[..., SamplingParams], rng: random.Random, num_requests: int = 500) -> list[list[Add]]:
    """Random lengths and seeds; a third begins with one of a few texts, and some prompts come several times.

    Args:
        params: makes sampling fields of those that are named.
        rng: where all of it is drawn from.
        num_requests: rows, all requests' results together.

    Returns:
        Requests, each with its results: rows that share the job and are added together, as a courier does it.
    """
    texts = [tuple(rng.randrange(3, 97) for _ in range(length)) for length in (9, 16, 37)]
    families: list[list[Add]] = []
    num_rows = 0
    while num_rows < num_requests:
        sampling = params(max_tokens=rng.randint(1, 24), seed=rng.randrange(1 << 40), **rng.choice(KINDS))
        text = rng.choice(texts) if rng.random() < 0.4 else ()
        prompt = (*text, *(rng.randrange(3, 97) for _ in range(rng.randint(1, 40))))
        if families and rng.random() < 0.15:
            prompt = rng.choice(families[-10:])[0].prompt_ids
        job, n = Job(prompt, sampling, ""), rng.choice((1, 1, 1, 1, rng.randint(2, MOST_CHILDREN)))
        children = [job.of_child(index) for index in range(min(n, num_requests - num_rows))]
        families.append([Add(num_rows + k, child.prompt_ids, (), child.params) for k, child in enumerate(children)])
        num_rows += len(children)
    return families


def solo(engine: Engine, add: Add) -> list[int]:
    """Compute a row in an engine that has no other: its tokens."""
    engine.add(add)
    tokens: list[int] = []
    while engine.has_rows:
        tokens += [token_id for _, token_id, _ in engine.step().tokens]
    return tokens


def churn(
    engine: Engine, families: list[list[Add]], rng: random.Random, before_step: Callable[[], object] = int
) -> tuple[dict[int, list[int]], set[int]]:
    """Let requests arrive a few a step, and drop a row now and then.

    Args:
        engine: without rows.
        families: what ``requests`` gives.
        rng: says who arrives and who is dropped when.
        before_step: called before each step.

    Returns:
        Each row's tokens, and the rows that were dropped.

    Raises:
        AssertionError: a row ended with an error.
    """
    tokens: dict[int, list[int]] = {add.row: [] for family in families for add in family}
    cancelled: set[int] = set()
    num_added = 0
    arriving = list(families)
    while arriving or engine.has_rows:
        for _ in range(rng.choice((0, 0, 1, 5))):
            for add in arriving.pop(0) if arriving else ():
                engine.add(add)
                num_added += 1
        if rng.random() < 0.05 and num_added:
            row = rng.randrange(num_added)
            cancelled.add(row)
            engine.drop(Drop((row,)))
        if engine.has_rows:
            before_step()
            for row, token_id, finish in engine.step().tokens:
                if finish == "error":
                    raise AssertionError(f"row {row} ended with an error behind {len(tokens[row])} tokens")
                tokens[row].append(token_id)
    return tokens, cancelled
