"""A step's sampling on the GPU brings what it brings on the CPU, whatever requests ask for."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from headrace.job import SamplingParams
from headrace.kernels.row_state import NextTokens
from headrace.kernels.sampling import SamplingParameters
from headrace.testing.draws import assert_near, keepings
from headrace.testing.sampling import compute, computed
from headrace.workers.engine.device_sampling import DeviceSampler
from headrace.workers.engine.plan import Chunk
from headrace.workers.engine.row_rules import RowRules
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.sampled import Sampled
from headrace.workers.engine.sampling import Sampler
from headrace.workers.engine.sequence import Sequence

MAX_ROWS, MAX_TOKENS = 24, 400
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.0},
    {"top_k": 7},
    {"top_p": 0.8, "temperature": 0.6},
    {"min_p": 0.05},
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.7, "presence_penalty": 0.5, "frequency_penalty": 0.3, "temperature": 0.0},
    {"frequency_penalty": -1.0},
    {"logprobs": 20},
    {"logprobs": 0, "temperature": 0.0},
    {"logprobs": 3, "logit_bias": ((5, 30.0), (6, 29.5), (9, -100.0))},
    {"bad_words": ((3,), (4, 7), (5, 6, 8)), "temperature": 0.0},
    {"min_tokens": 6, "stop_token_ids": (1, 2, 5000), "logit_bias": ((1, 20.0), (2, 19.0), (7, 15.0))},
    {"logit_bias": ((4, 40.0), (7, 39.0), (8, 20.0)), "bad_words": ((4, 7), (7, 7)), "temperature": 0.0},
    {"logprobs": 5, "presence_penalty": 2.0, "min_tokens": 3, "stop_token_ids": tuple(range(40))},
)


def params(**given: Any) -> SamplingParams:
    fields: dict[str, Any] = {
        "max_tokens": 60,
        "min_tokens": 0,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": 0,
        "stop": (),
        "stop_token_ids": (),
        "ignore_eos": True,
    }
    return SamplingParams(**fields | given)


def row(number: int, rng: random.Random, vocab: int, **given: Any) -> Sequence:
    prompt = tuple(rng.randrange(min(vocab, 40)) for _ in range(rng.randint(1, 300)))
    output = tuple(rng.randrange(min(vocab, 40)) for _ in range(rng.choice((0, 0, 5))))
    return Sequence(number, prompt, output, params(seed=rng.randrange(1 << 63), **given), frozenset())


def sample(sampler: DeviceSampler, state: RowState, logits: Tensor, rows: list[Sequence]) -> Sampled:
    """Draw a token a row, as a step does whose rows all sample."""
    group = sampler.prepare(rows, [state.place_of(one) for one in rows])
    sampler.results.begin()
    sampler.draw(logits, torch.tensor(group.places, device=logits.device), group.kind)
    return sampler.results.send(with_logprobs=group.kind.asking).take(len(rows), group.asking)


def assert_told(ours: Sampled, theirs: Sampled, logits: Tensor) -> None:
    assert ours.logprobs.keys() == theirs.logprobs.keys()
    raw = logits.double().log_softmax(-1)
    for index, told in ours.logprobs.items():
        assert told.logprob == pytest.approx(float(raw[index, ours.token_ids[index]]), abs=3e-5)
        assert [token_id for token_id, _ in told.top] == [token_id for token_id, _ in theirs.logprobs[index].top]
        assert [p for _, p in told.top] == pytest.approx([p for _, p in theirs.logprobs[index].top], abs=3e-5)


def assert_on_a_border(row: Sequence, logits: Tensor, token_id: int) -> None:
    """Sums of fp32 and of integers may part where a draw falls on the border between two tokens, and only there."""
    changed, rules, of = logits.clone(), RowRules.of(row, len(logits)), row.params
    if rules is not None:
        rules.apply(changed, row)
    asked = SamplingParameters(
        torch.tensor([of.temperature], dtype=torch.float32),
        torch.tensor([of.top_k], dtype=torch.int32),
        *(torch.tensor([value], dtype=torch.float32) for value in (of.top_p, of.min_p)),
        *(torch.tensor([value]) for value in (of.seed, len(row.token_ids), row.num_prompt_tokens)),
    )
    assert_near(keepings(changed[None], asked), 0, token_id)


@pytest.mark.parametrize("vocab", [53, 3001, 49152])
def test_rows_that_come_and_go_get_the_tokens_of_the_cpu(device: torch.device, vocab: int) -> None:
    rng, generator = random.Random(vocab), torch.Generator().manual_seed(vocab)
    on_gpu, on_cpu = RowState(MAX_ROWS, 1, device), RowState(MAX_ROWS, 1)
    ours, theirs = DeviceSampler(on_gpu, vocab, MAX_TOKENS), Sampler(on_cpu)
    kinds = [kind for kind in KINDS if vocab > 53 or "stop_token_ids" not in kind]
    rows: list[Sequence] = []
    number = num_drawn = num_off = 0
    for _ in range(60):
        while len(rows) < MAX_ROWS and rng.random() < 0.6:
            rows.append(row(number, rng, vocab, **kinds[number % len(kinds)]))
            number += 1
        rows.sort(key=lambda one: one.num_tokens_left > 1)
        batch = [one for one in rows if rng.random() < 0.9] or rows[:1]
        if not batch:  # no engine takes a step for nobody
            continue
        logits = torch.randn(len(batch), vocab, generator=generator) * 3
        for state in (on_gpu, on_cpu):
            compute(state, batch)
        drawn = sample(ours, on_gpu, logits.to(device, copy=True), batch)
        expected = theirs.sample(logits.clone(), batch)
        assert drawn.valid == expected.valid
        off = [i for i, pair in enumerate(zip(drawn.token_ids, expected.token_ids, strict=True)) if len(set(pair)) > 1]
        for i in off:
            assert batch[i].params.temperature > 0
            assert_on_a_border(batch[i], logits[i], drawn.token_ids[i])
        assert_told(drawn, expected, logits)
        num_drawn, num_off = num_drawn + len(batch), num_off + len(off)
        assert on_gpu.last_token[[on_gpu.place_of(one) for one in batch]].tolist() == drawn.token_ids
        for one, token_id in zip(batch, drawn.token_ids, strict=True):
            one.num_computed_tokens = len(one.token_ids)
            one.token_ids.append(token_id)
            for state in (on_gpu, on_cpu):
                state.last_token[state.place_of(one)] = token_id
        rows = [one for one in rows if one.num_output_tokens < one.params.max_tokens and rng.random() < 0.97]
    assert num_drawn > 500
    # A ten-millionth to both sides of every border.
    assert num_off <= 3 + 2e-7 * vocab * num_drawn


def test_a_row_that_lost_its_place_is_counted_again(device: torch.device) -> None:
    """Rows take turns in one place, each with penalties of its own."""
    rng, vocab = random.Random(3), 503
    state = RowState(1, 1, device)
    sampler = DeviceSampler(state, vocab, MAX_TOKENS)
    rows = [row(number, rng, vocab, **KINDS[6]) for number in range(3)]
    for step in range(30):
        one = rows[step % 3]
        logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(step))
        one.num_computed_tokens = 0
        compute(state, [one])
        drawn = sample(sampler, state, logits.to(device, copy=True), [one]).token_ids
        alone = Sequence(0, tuple(one.token_ids[: one.num_prompt_tokens]),
                         tuple(one.token_ids[one.num_prompt_tokens :]), one.params, frozenset())  # fmt: skip
        assert drawn == Sampler(computed([alone])).sample(logits, [alone]).token_ids
        one.token_ids += drawn


def test_rows_without_a_number_among_their_logits_fail_alone(device: torch.device) -> None:
    rng, vocab = random.Random(4), 1000
    rows = [row(number, rng, vocab, **KINDS[number]) for number in range(8)]
    state = RowState(8, 1, device)
    compute(state, rows)
    logits = torch.randn(8, vocab)
    logits[2, 7] = torch.nan
    logits[5] = -torch.inf
    sampled = sample(DeviceSampler(state, vocab, MAX_TOKENS), state, logits.to(device), rows)
    assert sampled.valid == [index not in (2, 5) for index in range(8)]


def test_after_the_first_steps_no_memory_is_taken_and_nothing_runs_but_our_kernels_and_copies(
    device: torch.device,
) -> None:
    rng, vocab = random.Random(5), 32000
    rows = [row(number, rng, vocab, **KINDS[number]) for number in range(len(KINDS))]
    state = RowState(len(rows), 1, device)
    sampler = DeviceSampler(state, vocab, MAX_TOKENS)
    logits = torch.randn(len(rows), vocab, device=device)

    following = NextTokens.empty(len(rows), device)
    places = torch.empty(len(rows), dtype=torch.int64, device=device)

    def step() -> None:
        state.enter([Chunk.next_of(one, one.num_tokens_left) for one in rows])
        state.next_tokens(following)
        group = sampler.prepare(rows, [state.place_of(one) for one in rows])
        places.copy_(torch.tensor(group.places))
        sampler.results.begin()
        sampler.draw(logits, places, group.kind)
        drawn = sampler.results.send(with_logprobs=True).take(len(rows), group.asking).token_ids
        for one, token_id in zip(rows, drawn, strict=True):
            one.num_computed_tokens = len(one.token_ids)
            one.token_ids.append(token_id)

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats(device)["allocation.all.allocated"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        for _ in range(5):
            step()
        torch.cuda.synchronize()
    assert torch.cuda.memory_stats(device)["allocation.all.allocated"] == before
    ours = {"logprob_scan", "logprob_top", "logprob_chosen", "edit_logits", "sample_scan", "sample_pick",
            "search_bins", "search_sums", "search_pick", "change_words", "next_tokens", "count_tokens",
            "tell_host"}  # fmt: skip
    ran = {event.key for event in profile.key_averages() if event.device_type.name == "CUDA"}
    assert {name for name in ran if not name.startswith("Memcpy")} <= ours
    assert {"sample_pick", "search_pick", "edit_logits", "logprob_top"} <= ran
