"""Texts for measuring: random ones, on the runner that serves, which remembers nothing of them."""

import random
from array import array
from collections.abc import Sequence

from headrace.errors import DeviceLostError, HeadraceError
from headrace.workers.encoder.engine import Runs
from headrace.workers.encoder.items import EncoderItem


class EncoderScratch:
    """A ``headrace.workers.engine.measurement.Scratch``.

    Args:
        runner: computes.
        vocab_size: token ids are below it.
        step_tokens: tokens computed in one step at most.
    """

    def __init__(self, runner: Runs, vocab_size: int, step_tokens: int) -> None:
        self._runner = runner
        self._vocab_size = vocab_size
        self._step_tokens = step_tokens
        self._random = random.Random(0)
        self._items: list[EncoderItem] = []

    @property
    def has_rows(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._items)

    def put(self, lengths: Sequence[int], *, packed: bool) -> None:
        """Give it texts of these lengths."""
        ids = range(self._vocab_size)
        self._items = [EncoderItem("embed", array("i", self._random.choices(ids, k=length))) for length in lengths]

    def step(self) -> str:
        """Compute one step; return what went wrong, "" if nothing.

        Raises:
            DeviceLostError: the GPU has failed.
        """
        count = num_tokens = 0
        while count < len(self._items) and (not count or num_tokens <= self._step_tokens):
            num_tokens += len(self._items[count].token_ids)
            count += not count or num_tokens <= self._step_tokens
        items, self._items = self._items[:count], self._items[count:]
        try:
            self._runner.compute(items)
        except DeviceLostError:
            raise
        except HeadraceError as error:
            return str(error)
        return ""

    def clear(self) -> None:
        """Forget what was put."""
        self._items = []
