import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.kernels import reference_sampling as reference
from headrace.kernels.penalties import Penalties
from headrace.workers.engine.uniform import sequence_of, uniform


@given(seed=st.integers(0, 2**64 - 1), position=st.integers(0, 2**31 - 1))
def test_the_random_numbers_are_the_engine_s(seed: int, position: int) -> None:
    bits = seed - (seed >> 63 << 64)
    assert reference.uniform(seed, position) == uniform(sequence_of(torch.tensor(bits)), torch.tensor(position))


def test_counts_tell_the_prompt_from_what_was_generated() -> None:
    counts = torch.full((10,), 7, dtype=torch.int16)
    reference.count_tokens(counts, torch.tensor([1, 1, 2, 2, 3, 3, 3]), 3)
    assert (counts.int() & 0xFFFF).tolist() == [0, 0x8000, 0x8001, 3, 0, 0, 0, 0, 0, 0]


def test_penalties_follow_openai_s_definitions() -> None:
    counts = torch.zeros(1, 4, dtype=torch.int16)
    reference.count_tokens(counts[0], torch.tensor([0, 1, 1, 2]), 1)
    repetition, presence, frequency = (torch.tensor([value]) for value in (2.0, 0.5, 0.25))
    penalties = Penalties(repetition, presence, frequency, counts, torch.tensor([0], dtype=torch.int32))
    logits = torch.tensor([[4.0, 4.0, -4.0, 4.0]])
    expected = [[2.0, 2.0 - 0.5 - 0.5, -8.0 - 0.25 - 0.5, 4.0]]
    assert reference.penalise(logits, penalties).tolist() == expected
