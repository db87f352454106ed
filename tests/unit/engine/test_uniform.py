from collections import Counter

import torch

from headrace.workers.engine.uniform import sequence_of, uniform

MASK = (1 << 64) - 1


def numbers_of(seeds: list[int], positions: list[int]) -> list[float]:
    numbers: list[float] = uniform(sequence_of(torch.tensor(seeds)), torch.tensor(positions)).tolist()
    return numbers


def split_mix(state: int, count: int) -> list[int]:
    """SplitMix64 as its authors wrote it: a state that moves."""
    outputs = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        outputs.append(z ^ (z >> 31))
    return outputs


def test_numbers_are_split_mix_from_a_mixed_seed() -> None:
    assert split_mix(1234567, 2) == [6457827717110365317, 3203168211198807973], "published vector"
    for seed in (0, 1, 1234567, 2**63 - 1):
        expected = [output >> 11 for output in split_mix(split_mix(seed, 1)[0], 50)]
        assert [int(number * 2**53) for number in numbers_of([seed] * 50, list(range(50)))] == expected


def test_numbers_lie_in_the_unit_interval_and_spread_evenly_over_positions_and_over_seeds() -> None:
    sevens, counting = [7] * 8000, list(range(8000))
    for numbers in (numbers_of(sevens, counting), numbers_of(counting, sevens)):
        assert 0 <= min(numbers) < max(numbers) < 1
        tenths = Counter(int(number * 10) for number in numbers)
        # 800 plus or minus six standard deviations of a binomial count
        assert all(640 < tenths[tenth] < 960 for tenth in range(10))


def test_neighbouring_seeds_do_not_share_their_numbers() -> None:
    numbers = numbers_of([seed for seed in range(200) for _ in range(200)], list(range(200)) * 200)
    assert len(set(numbers)) == len(numbers)
