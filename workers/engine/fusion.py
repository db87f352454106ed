"""Which tokens the next step computes: temporal fusion of requests, without padding and without waiting.

After Flover [1]: a request joins the running rows at the next step and leaves them in the step that ends it. Unlike
Flover's, a prompt comes in chunks, so that no prompt stalls the running rows longer than one bounded step [2].

Pure Python: no torch, no Redis, no clock.

[1] Yao et al., Flover: A Temporal Fusion Framework for Efficient Autoregressive Model Parallel Inference, 2023.
[2] Agrawal et al., Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve, OSDI 2024.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from headrace.errors import ConfigurationError
from headrace.memory.extents import Extents
from headrace.workers.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next ``num_tokens`` uncomputed tokens of a row."""

    sequence: Sequence
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether the row's last token is among them, so that the next one is drawn."""
        return self.num_tokens == self.sequence.num_tokens_left


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: the chunks to compute together, a row at most once."""

    chunks: tuple[Chunk, ...]


class Fusion:
    """The rows of one courier, waiting and running.

    Rows are admitted in the order of arrival, and a row for which there is no room holds back those behind it: it
    would starve if shorter ones could overtake it for ever. (The scheduler, not the engine, orders requests.)

    Args:
        extents: the key-value memory's slots.
        max_rows: rows running at once.
        step_tokens: tokens of a step at most. At least ``max_rows``: every decoding row takes part in every step,
            and a row that still prefills finds at least one token left, for it is not among the decoding ones.
    """

    def __init__(self, extents: Extents, *, max_rows: int, step_tokens: int) -> None:
        if not 1 <= max_rows <= step_tokens:
            raise ConfigurationError(f"max_rows {max_rows} must be at least 1 and at most step_tokens {step_tokens}")
        self._extents = extents
        self._max_rows = max_rows
        self._step_tokens = step_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}  # by row, in the order of admission

    @property
    def has_rows(self) -> bool:
        """Whether any row waits or runs."""
        return bool(self._waiting or self._running)

    def knows(self, row: int) -> bool:
        """Whether a row waits or runs."""
        return row in self._running or any(sequence.row == row for sequence in self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a row whose ``num_slots`` the memory can hold at all."""
        self._waiting.append(sequence)

    def remove(self, rows: Iterable[int]) -> None:
        """Forget rows, running or waiting; their memory is free for the next plan. Unknown ones are no error."""
        gone = set(rows)
        for row in gone & self._running.keys():
            extent = self._running.pop(row).extent
            if extent is not None:
                self._extents.release(extent)
        if any(sequence.row in gone for sequence in self._waiting):
            self._waiting = deque(sequence for sequence in self._waiting if sequence.row not in gone)

    def clear(self) -> None:
        """Forget all rows."""
        self.remove([*self._running, *(sequence.row for sequence in self._waiting)])

    def plan(self) -> Plan:
        """Admit whom there is room for, then take every decoding row and fill the budget with prompts, oldest first.

        A plan must be computed and settled (or its rows removed) before the next one is made.
        """
        self._admit()
        running = self._running.values()
        chunks = [Chunk(sequence, 1) for sequence in running if sequence.num_tokens_left == 1]
        budget = self._step_tokens - len(chunks)
        for sequence in running:
            if budget and sequence.num_tokens_left > 1:
                chunk = Chunk(sequence, min(sequence.num_tokens_left, budget))
                chunks.append(chunk)
                budget -= chunk.num_tokens
        return Plan(tuple(chunks))

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_rows:
            extent = self._extents.reserve(self._waiting[0].num_slots)
            if extent is None:
                return
            sequence = self._waiting.popleft()
            sequence.extent = extent
            self._running[sequence.row] = sequence
