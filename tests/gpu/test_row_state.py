"""What a GPU knows of rows is what a CPU knows of them, whoever joins, leaves and gives way."""

import random

import torch

from headrace.job import SamplingParams
from headrace.kernels import reference_state as reference
from headrace.kernels.row_state import NextTokens, change_words, next_tokens
from headrace.memory.pages import Pages
from headrace.workers.engine.fusion import Fusion
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.sampling_state import SamplingState
from headrace.workers.engine.sequence import Sequence
from headrace.workers.engine.state_memory import StateMemory


def sequence(row: int, num_prompt: int, max_tokens: int) -> Sequence:
    params = SamplingParams(
        max_tokens, 0, row % 3 * 0.3, row % 7, 1 - row % 5 / 9, row % 2 / 7, row << 40 | row, (), (), True
    )
    return Sequence(row, tuple(range(row * 100, row * 100 + num_prompt)), (), params, frozenset())


def test_words_are_changed(device: torch.device) -> None:
    words = torch.randint(-9, 9, (5000,), dtype=torch.int32, device=device)
    changes = torch.randint(-(2**31), 2**31 - 1, (3001, 2), dtype=torch.int32, device=device)
    changes[:, 0] = torch.randperm(5000, device=device)[:3001].to(torch.int32)
    expected = words.clone()
    reference.change_words(expected, changes)
    change_words(words, changes)
    change_words(words, changes[:0])
    assert torch.equal(words, expected)


def test_rows_that_decode_go_on_by_one_token(device: torch.device) -> None:
    for num_places in (1, 31, 256, 600):
        position, last_token = torch.randint(0, 9999, (2, 700), device=device)
        source = torch.randperm(700, dtype=torch.int32, device=device)
        decodes = torch.randint(0, 2, (700,), dtype=torch.int32, device=device)
        ours, theirs = NextTokens.empty(num_places, device), NextTokens.empty(num_places, device)
        expected = position.clone()
        reference.next_tokens(theirs, expected, last_token, source, decodes)
        next_tokens(ours, position, last_token, source, decodes)
        for name in ("token_ids", "positions", "lengths", "places"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
        assert torch.equal(position, expected)


def test_values_of_every_type_arrive_and_the_last_one_counts(device: torch.device) -> None:
    columns = {"a": (torch.int64, (7,)), "b": (torch.float32, (9, 1001)), "c": (torch.int32, (3,))}
    memory, expected = StateMemory(columns, device), StateMemory(columns)
    rng = random.Random(0)
    for _ in range(30):
        for one in (memory, expected):
            one.write("b", 0, [0.25] * 9009)
        for _ in range(10):
            first, values = rng.randrange(9000), [rng.gauss(0, 1) for _ in range(9)]
            numbers, place = [rng.randrange(-(2**63), 2**63)], rng.randrange(7)
            for one in (memory, expected):
                one.write("b", first, values)
                one.write("a", place, numbers)
                one.write("c", 1, [place - 3])
        memory.send()
        for name in columns:
            assert torch.equal(memory[name].cpu(), expected[name])


def test_the_gpu_knows_what_the_cpu_knows(device: torch.device) -> None:
    rng = random.Random(0)
    fusion = Fusion(Pages(14, 4), max_rows=4, step_tokens=10)
    states = RowState(4, 14, device), RowState(4, 14)
    for number in range(300):
        if rng.random() < 0.3:
            fusion.add(sequence(number + 1, rng.randint(1, 20), rng.randint(1, 20)))
        if rng.random() < 0.05:
            fusion.remove({rng.randint(1, number + 1)})
        if not fusion.has_rows:
            continue
        plan = fusion.plan()
        sampling = [chunk.sequence for chunk in plan.chunks if chunk.samples]
        on_gpu, on_cpu = states
        below = len(plan.chunks) if all(chunk.decodes for chunk in plan.chunks) else None
        assert on_gpu.enter(plan.chunks, below=below) == on_cpu.enter(plan.chunks, below=below)
        for state in states:
            state.next_tokens(NextTokens.empty(4, state.position.device))
            for row in sampling:
                state.last_token[state.place_of(row)] = number
        for name in ("last_token", "position", "source", "decodes", "page_table"):
            assert torch.equal(getattr(on_gpu, name).cpu(), getattr(on_cpu, name))
        for name in SamplingState.columns(0):
            assert torch.equal(getattr(on_gpu.sampling, name).cpu(), getattr(on_cpu.sampling, name))
        fusion.advance(plan)
        for row in sampling:
            row.num_pending -= 1
            row.token_ids.append(number)
        fusion.remove(row.row for row in sampling if row.num_output_tokens == row.params.max_tokens)
    assert fusion.num_preemptions > 5
