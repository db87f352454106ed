"""Requests to measure with: their lengths are part of a case's name, their tokens are new in every round."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headrace.job import SamplingParams
from headrace.testing.plain_params import plain_params
from headrace.workers.channel import Add

#: Token ids are drawn below it, or below the vocabulary's size.
_MOST_IDS = 30_000


@dataclass(frozen=True, slots=True)
class Lengths:
    """One request.

    Attributes:
        prompt: its tokens.
        output: tokens that it ends after.
    """

    prompt: int
    output: int


def ragged(count: int, low: int = 100, high: int = 1024) -> list[Lengths]:
    """Lengths in and out uniform between two, drawn as nano-vllm's bench.py draws them with seed 0.

    For 256 requests these are the lengths of that benchmark: 142,827 tokens in, 133,966 out.
    """
    drawn = random.Random(0)
    prompts = []
    for _ in range(count):
        prompts.append(drawn.randint(low, high))
        for _ in range(prompts[-1]):
            drawn.randint(0, 10_000)  # its prompts' tokens, which come between the lengths
    return [Lengths(prompt, drawn.randint(low, high)) for prompt in prompts]


def falling(count: int) -> Iterator[Lengths]:
    """Short requests that end one after the other, the one that came last first: fewer and fewer are left."""
    for row in range(count):
        yield Lengths(24, 3 + (count - 1 - row) // 4)


class Requests:
    """Makes requests for one engine; no two prompts are alike, so that no beginning is found again.

    Args:
        vocab_size: of the model.
        seed: equal seeds make equal requests.
    """

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._vocab_size = min(vocab_size, _MOST_IDS)
        self._row = 0

    def prompt(self, length: int) -> tuple[int, ...]:
        """Draw a prompt."""
        return tuple(self._random.choices(range(self._vocab_size), k=length))

    def adds(self, lengths: Sequence[Lengths], temperature: float = 0.0) -> list[Add]:
        """Make a request of each length, which ends after so many tokens whatever they are."""
        return [self.add(self.prompt(each.prompt), each.output, temperature) for each in lengths]

    def add(self, prompt: tuple[int, ...], num_output: int, temperature: float = 0.0) -> Add:
        """Make a request of a given prompt."""
        self._row += 1
        return Add(self._row, prompt, (), self._params(num_output, temperature))

    def _params(self, num_output: int, temperature: float) -> SamplingParams:
        return plain_params(num_output, temperature=temperature, seed=self._row)
