"""Room for a step's activations, made before the step is planned: nobody may run out of memory half-way."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol

import torch

from headrace.kernels.planned_steps import Place
from headrace.memory.pool import Pool
from headrace.memory.workspace import Activation
from headrace.workers.engine.fusion import Fusion
from headrace.workers.engine.plan import Plan

logger = logging.getLogger(__name__)


class Traced(Protocol):
    """A table of operations that knows what its steps write, and writes it where it is told."""

    def place_in(self, place: Place) -> None:
        """Give results memory from now on."""

    def knows(self, num_sampled: int) -> bool:
        """Whether it knows that of steps that sample so many tokens."""

    def results(self, num_tokens: int, num_sampled: int) -> Sequence[Activation]:
        """Say what a step of so many tokens writes."""


class Room:
    """Makes room in a pool, at the cost of what can best be spared.

    First goes what is kept for rows to come; then pages move until whole chunks are free; then the row that was
    admitted last gives way, and the one before it; and last the step becomes shorter.

    Args:
        pool: the engine's memory.
        operations: compute the steps.
        num_idle_rows: rows that a step may compute beside those of its plan, because a place of the device's is empty.
        launching: entered while pages move; the stream that steps run on.
        num_padding: tokens that may be added to a step beside these, which nobody samples.

    Attributes:
        pool: as given.
    """

    def __init__(
        self,
        pool: Pool,
        operations: Traced,
        num_idle_rows: int = 0,
        launching: Callable[[], AbstractContextManager[object]] = nullcontext,
        *,
        num_padding: int = 0,
    ) -> None:
        self.pool = pool
        self._operations = operations
        self._num_idle_rows = num_idle_rows
        self._launching = launching
        self._num_padding = num_padding

    @torch.inference_mode()
    def plan(self, fusion: Fusion) -> Plan:
        """Plan the next step, after making room for it.

        Where steps' results have taken so much that no row finds a page, they give it back and the step is shorter;
        but not while tokens are being drawn, for the rows that these end give theirs back.
        """
        with self._launching():
            # A model, and its table, may serve several engines by turns.
            self._operations.place_in(self.pool.workspace.place)
            max_tokens = None
            while True:
                num_tokens = self._make(fusion, max_tokens)
                plan = fusion.plan(num_tokens)
                if plan.chunks or num_tokens <= 1 or fusion.awaits_tokens:
                    return plan
                self.pool.workspace.release()
                max_tokens = num_tokens // 2

    def _make(self, fusion: Fusion, max_tokens: int | None) -> int:
        """Make room for the next plan: how many tokens it may have."""
        num_tokens, num_sampled = fusion.greatest_lengths()
        if max_tokens is None and self._fits(num_tokens, num_sampled):
            return num_tokens
        num_tokens, num_sampled = fusion.greatest_lengths(closely=True)
        if max_tokens is not None:
            num_tokens, num_sampled = min(num_tokens, max_tokens), min(num_sampled, max_tokens)
            while fusion.num_decoding > num_tokens and fusion.preempt():
                logger.info("a row gives way, for the next step has %d tokens at most", num_tokens)
        while not self._fits(num_tokens, num_sampled):
            if fusion.preempt():
                logger.info("a row gives way to a step's activations")
            elif num_tokens > 1:
                num_tokens = -(-num_tokens // 2)
                num_sampled = min(num_sampled, num_tokens)
                logger.warning("memory is short: the next step has %d tokens at most", num_tokens)
            else:
                break  # the step itself says what it lacks
        return num_tokens

    def _fits(self, num_tokens: int, num_sampled: int) -> bool:
        num_computed = num_tokens + self._num_idle_rows + self._num_padding
        # A step in which nobody samples writes other results, and may come instead of one in which somebody does.
        return all(
            not self._operations.knows(lengths[1])
            or self.pool.make_room(lengths, partial(self._operations.results, *lengths))
            for lengths in ((num_computed, max(num_sampled, self._num_idle_rows)), (num_computed, 0))
        )
