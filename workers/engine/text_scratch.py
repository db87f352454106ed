"""Prompts for measuring: rows on a scratch engine of a model that writes, each of which draws one token."""

import random
from collections.abc import Sequence

from headrace.job import SamplingParams
from headrace.workers.channel import Add
from headrace.workers.engine.engine import Engine


class TextScratch:
    """A ``headrace.workers.engine.measurement.Scratch``; its runtime packs, whatever is asked for.

    Args:
        engine: whose pages, index and rows are nobody else's.
        vocab_size: token ids are below it.
    """

    def __init__(self, engine: Engine, vocab_size: int) -> None:
        self._engine = engine
        self._vocab_size = vocab_size
        self._random = random.Random(0)
        self._num_rows = 0

    @property
    def has_rows(self) -> bool:
        """Whether a step would do anything."""
        return self._engine.has_rows

    def put(self, lengths: Sequence[int], *, packed: bool) -> None:
        """Give it prompts of these lengths."""
        for length in lengths:
            self._num_rows += 1
            # No two of them begin alike, or they would share what they compute.
            first = self._num_rows % self._vocab_size
            rest = self._random.choices(range(self._vocab_size), k=length - 1)
            self._engine.add(Add(self._num_rows, (first, *rest), (), _ONE_TOKEN))

    def step(self) -> str:
        """Compute one step; return what went wrong, "" if nothing."""
        return self._engine.step().error

    def clear(self) -> None:
        """Forget what was put."""
        self._engine.clear()


_ONE_TOKEN = SamplingParams(
    max_tokens=1, min_tokens=0, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, stop=(), stop_token_ids=(),
    ignore_eos=True,
)  # fmt: skip
