import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.workers.engine.step_budget import StepBudget
from headrace.workers.engine.step_work import StepWork


def prompt(num_tokens: int, num_decoding: int = 0) -> StepWork:
    return StepWork(num_tokens + num_decoding, num_tokens, ((1, num_tokens),))


def test_where_nothing_is_bounded_a_step_is_as_long_as_may_be() -> None:
    budget = StepBudget(8192, 0, 0)
    budget.observe(prompt(1000), 1000)
    assert budget.tokens(0) == budget.tokens(100) == 8192


def test_a_step_of_prompts_alone_has_a_bound_of_its_own() -> None:
    budget = StepBudget(30_000, 50, 200)
    budget.observe(prompt(1000), 20)
    assert (budget.tokens(1), budget.tokens(0)) == (2304, 9984)
    assert StepBudget(8192, 50, 0).tokens(0) == StepBudget(8192, 0, 200).tokens(1) == 8192


@given(st.floats(0.0005, 1), st.integers(1, 500), st.integers(600, 20_000))
def test_beside_rows_that_decode_a_step_takes_about_as_long_as_it_may(
    token_ms: float, num_decoding: int, step_tokens: int
) -> None:
    budget = StepBudget(step_tokens, 50, 200)
    for num_tokens in (2000, 500):
        budget.observe(prompt(num_tokens), num_tokens * token_ms)
    tokens = budget.tokens(num_decoding)
    assert num_decoding < tokens <= step_tokens
    # Either it keeps to the time, or there would be next to no prompt in it.
    assert tokens * token_ms <= 50 * 1.001 or tokens <= max(512, num_decoding + 256)
    assert tokens == step_tokens or (tokens + 256) * token_ms > 50 or tokens > 50 / token_ms - 256


def test_before_anything_is_known_a_step_is_of_middle_length() -> None:
    assert StepBudget(8192, 50, 200).tokens(3) == StepBudget(8192, 50, 200).tokens(0) == 2048
    assert StepBudget(1024, 50, 200).tokens(3) == 1024


@pytest.mark.parametrize(
    ("work", "step_ms"),
    [(prompt(255), 500.0), (prompt(300, 400), 500.0), (StepWork(900), 500.0), (prompt(2000), 0.0)],
    ids=["few tokens", "mostly rows that decode", "no prompt", "no time known"],
)
def test_what_tells_nothing_of_prompts_is_not_learnt_from(work: StepWork, step_ms: float) -> None:
    budget = StepBudget(8192, 50, 200)
    budget.observe(prompt(1000), 10)
    known = budget.tokens(1)
    budget.observe(work, step_ms)
    assert budget.tokens(1) == known == 4864


def test_one_slow_step_is_soon_forgotten() -> None:
    budget = StepBudget(8192, 50, 200)
    for step_ms in (10.0, 1000.0, *[10.0] * 20):
        budget.observe(prompt(1000), step_ms)
    assert budget.tokens(1) > 4000
