import random
from collections import deque
from collections.abc import Callable
from itertools import count
from statistics import mean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.workers.engine.step_budget import StepBudget
from headrace.workers.engine.step_work import StepWork

SIZES: list[int] = [512, 768, *range(1024, 2048, 256), *range(2048, 4096, 512), *range(4096, 8193, 1024)]
#: Step of so many tokens -> ms.
Device = Callable[[int], float]


def prompt(num_tokens: int, num_decoding: int = 0) -> StepWork:
    return StepWork(num_tokens + num_decoding, num_tokens, ((1, num_tokens),))


def run(budget: StepBudget, device: Device, num_steps: int, num_decoding: int = 1) -> list[int]:
    """The lengths of steps that are all filled, each begun before the one ahead of it has ended."""
    lengths: list[int] = []
    at_work: deque[int] = deque()
    for _ in range(num_steps):
        lengths.append(budget.tokens(num_decoding))
        at_work.append(lengths[-1])
        if len(at_work) > 1:
            done = at_work.popleft()
            budget.observe(prompt(done - num_decoding, num_decoding), device(done))
    return lengths


def longest(device: Device, bound_ms: float, slack: float = 1.0) -> int:
    """The longest step within the bound, or within what a step takes anyway."""
    most_ms = slack * max(bound_ms, 1.25 * device(SIZES[0]))
    return max((size for size in SIZES if device(size) <= most_ms), default=SIZES[0])


def waiting_for_the_host(host_ms: float, token_ms: float) -> Device:
    return lambda num_tokens: max(host_ms, token_ms * num_tokens)


def devices() -> st.SearchStrategy[Device]:
    """Devices that wait for their host, that compute tokens at one cost, and that have a fixed cost beside."""
    host_ms, token_ms = st.floats(0, 60), st.floats(0.0005, 0.1)
    added = st.builds(lambda fixed, token: lambda num_tokens: fixed + token * num_tokens, host_ms, token_ms)
    return st.builds(waiting_for_the_host, host_ms, token_ms) | added


@given(devices(), st.floats(5, 60), st.integers(1, 256))
def test_steps_become_as_long_as_the_bound_allows_and_stay_so(
    device: Device, bound_ms: float, num_decoding: int
) -> None:
    lengths = run(StepBudget(8192, bound_ms, 0), device, 400, num_decoding)[60:]
    best = longest(device, bound_ms)
    # Now and then it looks whether longer steps are possible by now, one size longer or the shortest to compare with.
    assert sum(length == best for length in lengths) >= 0.9 * len(lengths)
    assert {length for length in lengths if length > best} <= {SIZES[min(SIZES.index(best) + 1, len(SIZES) - 1)]}


@given(devices(), st.integers(0, 1 << 32))
def test_steps_are_about_as_long_despite_noise_and_steps_that_compile(device: Device, seed: int) -> None:
    rng, calls = random.Random(seed), count()

    def noisy(num_tokens: int) -> float:
        compiles = 300.0 if next(calls) % 9 == 0 else 0.0
        return device(num_tokens) * rng.uniform(0.95, 1.05) + compiles

    lengths = run(StepBudget(8192, 15, 0), noisy, 300)[100:]
    assert longest(device, 15, 0.88) <= median(lengths) <= longest(device, 15, 1.12)


@pytest.mark.parametrize(("before_ms", "after_ms"), [(40.0, 5.0), (17.0, 10.0), (5.0, 40.0), (10.0, 17.0)])
def test_a_host_that_becomes_faster_or_slower_is_followed(before_ms: float, after_ms: float) -> None:
    budget = StepBudget(8192, 15, 0)
    run(budget, waiting_for_the_host(before_ms, 0.0019), 200)
    after = waiting_for_the_host(after_ms, 0.0019)
    lengths = run(budget, after, 140)
    assert mean(length == longest(after, 15) for length in lengths[60:]) >= 0.9
    assert mean(lengths) > 4096


@pytest.mark.parametrize("host_ms", [5.0, 10.0, 17.0, 42.0])
def test_where_steps_wait_for_the_host_256_requests_need_few_steps_with_prompts(host_ms: float) -> None:
    device = waiting_for_the_host(host_ms, 0.0019)
    for seed in range(3):
        assert len(prompt_steps(lambda length, decoding: device(length) + 0.02 * decoding, seed)) < 60


def test_where_every_token_costs_the_same_256_requests_keep_to_the_bound() -> None:
    for seed in range(3):
        took = prompt_steps(lambda length, decoding: 2.0 + 0.024 * length, seed)
        assert median(took) < 15
        assert mean(took) < 17


def prompt_steps(step_ms: Callable[[int, int], float], seed: int) -> list[float]:
    """256 requests at once, of 100 to 1,024 tokens each way: what steps took with prompts beside rows, in ms."""
    rng, budget = random.Random(seed), StepBudget(8192, 15, 200)
    prompts = [rng.randint(100, 1024) for _ in range(256)]
    outputs = [rng.randint(100, 1024) for _ in range(256)]
    took: list[float] = []
    while any(prompts):
        decoding = [row for row in range(256) if not prompts[row] and outputs[row]]
        num_tokens = num_left = budget.tokens(len(decoding)) - len(decoding)
        for row in range(256):
            chunk = min(prompts[row], num_left)
            prompts[row] -= chunk
            num_left -= chunk
        for row in decoding:
            outputs[row] -= 1
        num_tokens -= num_left
        ms = step_ms(num_tokens + len(decoding), len(decoding))
        budget.observe(prompt(num_tokens, len(decoding)), ms)
        took += [ms] * bool(decoding)
    return took


def test_a_model_of_fast_prompts_gets_its_longest_step_as_soon_as_one_is_known() -> None:
    device, budget = waiting_for_the_host(10, 0.0019), StepBudget(8192, 15, 200)
    assert run(budget, device, 6, num_decoding=0) == [2048, 2048, 8192, 8192, 8192, 8192]
    beside_rows = StepBudget(8192, 15, 200)
    run(beside_rows, device, 100, num_decoding=200)
    assert beside_rows.tokens(0) == 8192


@given(devices(), st.integers(0, 40), st.floats(5, 300))
def test_a_size_that_fits_if_its_tokens_cost_as_much_as_those_of_a_shorter_one_is_not_tried_from_below(
    device: Device, num_steps: int, prompt_step_ms: float
) -> None:
    budget = StepBudget(8192, 15, prompt_step_ms)
    known = set(run(budget, device, num_steps)[:-1])
    if known and max(map(device, known)) <= prompt_step_ms:
        cheapest = min(known, key=lambda size: device(size) / size)
        token_ms = device(cheapest) / cheapest
        fitting = [size for size in SIZES if size >= cheapest and token_ms * size <= prompt_step_ms]
        assert budget.tokens(0) >= max(fitting, default=0)


def test_the_shortest_step_is_not_tried_where_it_could_not_raise_the_bound() -> None:
    lengths = run(StepBudget(8192, 15, 200), lambda num_tokens: 10.0 if num_tokens <= 4096 else 16.0, 400)
    assert lengths.count(5120) >= 2
    assert min(lengths) == 2048
    assert lengths.count(2048) == 2  # until the first one has ended


def test_where_nothing_is_bounded_a_step_is_as_long_as_may_be() -> None:
    budget = StepBudget(8192, 0, 0)
    budget.observe(prompt(1000), 1000)
    assert budget.tokens(0) == budget.tokens(100) == 8192


def test_a_step_of_prompts_alone_has_a_bound_of_its_own() -> None:
    budget = StepBudget(30_000, 50, 200)
    for num_tokens in (512, 12_288):
        budget.observe(prompt(num_tokens), 0.0201 * num_tokens)
    assert (budget.tokens(1), budget.tokens(0)) == (2048, 8192)
    assert StepBudget(8192, 50, 0).tokens(0) == StepBudget(8192, 0, 200).tokens(1) == 8192


@given(devices(), st.integers(0, 20_000), st.integers(1, 20_000), st.integers(0, 20))
def test_a_step_has_room_for_prompts_however_many_rows_decode(
    device: Device, num_decoding: int, num_spare: int, num_steps: int
) -> None:
    budget = StepBudget(num_decoding + num_spare, 15, 200)
    lengths = run(budget, device, num_steps, num_decoding)
    assert all(min(num_spare, 256) <= length - num_decoding <= num_spare for length in lengths)


def test_before_anything_is_known_a_step_is_of_middle_length() -> None:
    assert StepBudget(8192, 50, 200).tokens(3) == StepBudget(8192, 50, 200).tokens(0) == 2048
    assert StepBudget(1024, 50, 200).tokens(3) == 1024


@pytest.mark.parametrize(
    ("work", "step_ms"),
    [(prompt(255), 500.0), (prompt(200, 400), 500.0), (StepWork(900), 500.0), (prompt(2000), 0.0)],
    ids=["few tokens", "mostly rows that decode", "no prompt", "no time known"],
)
def test_what_tells_nothing_of_prompts_is_not_learnt_from(work: StepWork, step_ms: float) -> None:
    budget = StepBudget(8192, 50, 200)
    for num_tokens in (512, 512, 2048, 2048, 2560, 2560):
        budget.observe(prompt(num_tokens), 0.02 * num_tokens)
    for _ in range(5):
        budget.observe(work, step_ms)
    assert budget.tokens(1) == 2048


def test_one_slow_step_does_not_shorten_those_behind_it() -> None:
    budget = StepBudget(8192, 50, 200)
    run(budget, lambda num_tokens: 0.0049 * num_tokens, 20)
    budget.observe(prompt(8192), 1000)
    assert budget.tokens(1) == 8192


def test_a_longer_size_whose_first_step_was_slow_is_tried_once_more() -> None:
    budget = StepBudget(8192, 50, 200)
    for num_tokens, step_ms in ((512, 39), (2048, 49), (2560, 300)):
        budget.observe(prompt(num_tokens), step_ms)
    assert budget.tokens(1) == 2560
    budget.observe(prompt(2560), 49)
    assert budget.tokens(1) == 3072


def test_what_the_shortest_step_took_once_does_not_raise_the_bound_after_longer_ones_took_less() -> None:
    budget = StepBudget(8192, 50, 200)
    for num_tokens, step_ms in ((512, 60), (2048, 40), (2560, 55), (2560, 55)):
        budget.observe(prompt(num_tokens), step_ms)
    assert budget.tokens(1) == 2048
