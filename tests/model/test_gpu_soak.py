"""What a soak says of rows: planted ones, by the model on the CPU."""

import random

import pytest
from transformers import PreTrainedModel

from headrace.testing.churn import requests
from headrace.testing.gpu_soak import Churned, compare, make_model
from headrace.testing.near_ties import ROWS_A_TIE, NearTies
from headrace.testing.plain_params import plain_params

NUM_ROWS = 12


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def expected() -> dict[int, list[int]]:
    return {row: [row + 3, 5, 7] for row in range(NUM_ROWS)}


def churned(tokens: dict[int, list[int]], dropped: frozenset[int] = frozenset()) -> Churned:
    adds = (add for family in requests(plain_params, random.Random(0), NUM_ROWS) for add in family)
    return Churned(tuple(adds), tokens, dropped, num_preemptions=0, num_used_pages=0)


def test_rows_with_the_tokens_that_they_get_alone_are_right_and_dropped_ones_with_as_many_as_they_have(
    oracle: PreTrainedModel, expected: dict[int, list[int]]
) -> None:
    found = compare(oracle, churned(expected | {4: expected[4][:1]}, frozenset({4})), expected)
    assert (found.num_rows, found.num_parted, found.num_wrong, found.failures) == (NUM_ROWS, 0, 0, ())


def test_a_row_that_ended_early_and_one_with_another_token_are_wrong(
    oracle: PreTrainedModel, expected: dict[int, list[int]]
) -> None:
    found = compare(oracle, churned(expected | {4: expected[4][:1], 6: [250, 5, 7]}), expected)
    assert (found.num_rows, found.num_parted, found.num_wrong) == (NUM_ROWS, 0, 2)
    assert "1 tokens instead of 3" in found.failures[0]
    assert len(found.failures) == 2


def test_only_rows_are_compared_of_which_it_is_known_what_they_get_alone(
    oracle: PreTrainedModel, expected: dict[int, list[int]]
) -> None:
    part = {row: tokens for row, tokens in expected.items() if row % 3 == 0}
    found = compare(oracle, churned(expected | {1: []}), part)
    assert (found.num_rows, found.num_wrong) == (len(part), 0)


def test_more_near_ties_than_rounding_brings_are_a_failure_though_no_row_is_wrong(
    oracle: PreTrainedModel, expected: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NearTies, "assert_near", lambda *args: None)  # each row that parts has parted at a near tie
    adds = churned(expected).adds
    parted = {
        add.row: [tokens[0] + 1, *[0] * (add.params.max_tokens - 1)]
        for add, tokens in zip(adds, expected.values(), strict=True)
    }
    one = compare(oracle, churned(expected | {2: parted[2]}), expected)
    assert (one.num_parted, one.num_wrong, one.failures) == (1, 0, ())
    two = compare(oracle, churned(expected | {2: parted[2], 3: parted[3]}), expected)
    assert ROWS_A_TIE > NUM_ROWS
    assert (two.num_parted, two.num_wrong) == (2, 0)
    assert two.failures == (f"2 of {NUM_ROWS} rows parted, more than 1: rounding is rarer",)
