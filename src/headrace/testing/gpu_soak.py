"""Requests under churn on the GPU, in fp32 by a small model, and each of them alone: the same tokens, up to near ties.

``headrace.testing.churn`` draws the requests. Computing each alone takes longest, so processes may share that.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from headrace.testing.churn import churn, requests, solo
from headrace.testing.near_ties import NearTies
from headrace.testing.plain_params import plain_params
from headrace.testing.small_engines import engine_of
from headrace.testing.tiny_models import KINDS, make_oracle, with_device_heads
from headrace.workers.channel import Add


@dataclass(frozen=True, slots=True)
class Churned:
    """What requests got that came and went together.

    Attributes:
        adds: the rows.
        tokens: each row's, by its number.
        dropped: rows that were ended before their time.
        num_preemptions: how often a row gave its pages up for others.
        num_used_pages: pages that were held when all rows had ended.
    """

    adds: tuple[Add, ...]
    tokens: Mapping[int, list[int]]
    dropped: frozenset[int]
    num_preemptions: int
    num_used_pages: int


@dataclass(frozen=True, slots=True)
class Compared:
    """Rows beside what they get alone.

    Attributes:
        num_rows: that were compared.
        num_parted: of these, with other tokens by a near tie.
        num_wrong: of these, with other tokens by anything else.
        failures: what is wrong with these rows, and whether too many parted.
    """

    num_rows: int
    num_parted: int
    num_wrong: int
    failures: tuple[str, ...]


def make_model(folder: Path) -> PreTrainedModel:
    """Make the model of a soak, and save it into ``folder``."""
    return make_oracle(with_device_heads(KINDS["qwen3 tied"], 64), folder)


def churned(folder: Path, num_requests: int) -> Churned:
    """Compute so many rows that come and go together, in a memory for about three of the longest.

    Growing rows push younger ones out again and again.
    """
    rng = random.Random(0)
    families = requests(plain_params, rng, num_requests)
    adds = tuple(add for family in families for add in family)
    engine = engine_of(folder, torch.float32, max_rows=12, kv_tokens=320, step_tokens=40, row_tokens=110).engine
    tokens, dropped = churn(engine, families, rng)
    return Churned(adds, tokens, frozenset(dropped), engine.num_preemptions, engine.num_used_pages)


def alone(folder: Path, num_requests: int, part: int, num_parts: int) -> dict[int, list[int]]:
    """Compute every ``num_parts``-th of the same rows, from number ``part`` on, each by itself: tokens by row."""
    families = requests(plain_params, random.Random(0), num_requests)
    adds = [add for family in families for add in family][part::num_parts]
    engine = engine_of(folder, torch.float32, max_rows=1, kv_tokens=4096, step_tokens=256, row_tokens=256).engine
    return {add.row: solo(engine, add) for add in adds}


def compare(oracle: PreTrainedModel, run: Churned, expected: Mapping[int, list[int]]) -> Compared:
    """Compare those rows for which ``expected`` tells what they get alone.

    Products and norms round otherwise for another number of rows: ``NearTies`` says what that excuses.
    """
    ties = NearTies(oracle)
    mine = [add for add in run.adds if add.row in expected]
    failures: list[str] = []
    for add in mine:
        try:
            ties.assert_same(add, run.tokens[add.row], expected[add.row], dropped=add.row in run.dropped)
        except AssertionError as error:
            failures.append(str(error))
    num_wrong = len(failures)
    try:
        ties.assert_few(len(mine))
    except AssertionError as error:
        failures.append(str(error))
    return Compared(len(mine), ties.num_parted, num_wrong, tuple(failures))
