"""How long the device takes for an operation, with nothing of it in the cache."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch

# Many times any card's second-level cache: the host has the time that this takes to queue the operation.
_FLUSH_BYTES = 1 << 30
# Turns of all operations between two waits, and runs before them.
_TURNS, _UNTIMED = 10, 3


class Timer:
    """Times operations in turn, so that a drift of the clocks meets all of them."""

    def __init__(self, device: torch.device) -> None:
        self._flushed = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)

    def medians_us(self, operations: Sequence[Callable[[], object]], repetitions: int = 30) -> list[float]:
        """Median time of each operation, in microseconds.

        Before each run the cache is overwritten; that takes the device longer than the host needs to queue the
        operation, so that launches are not part of the time, but gaps between an operation's own kernels are.

        What runs among the first three after a wait takes a third of a microsecond less than what runs later, so these
        are not timed; the others begin with each operation equally often.

        Args:
            operations: what to time; each runs once before, untimed.
            repetitions: timed runs of each.
        """
        count = len(operations)
        times: list[list[float]] = [[] for _ in operations]
        for operation in operations:
            operation()
        for begin in range(0, repetitions, _TURNS):
            turns = range(begin, min(begin + _TURNS, repetitions))
            order = [(turn + place) % count for turn in turns for place in range(count)]
            events = [self._run(operations[index]) for index in (*order[:_UNTIMED], *order)]
            torch.cuda.synchronize()
            for index, (start, end) in zip(order, events[-len(order) :], strict=True):
                times[index].append(start.elapsed_time(end) * 1e3)
        return [statistics.median(taken) for taken in times]

    def _run(self, operation: Callable[[], object]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = _event(), _event()
        self._flushed.zero_()
        start.record()
        operation()
        end.record()
        return start, end

    def copying(self, num_bytes: int) -> Callable[[], object]:
        """The card's own copy of so many bytes, read and written once each."""
        source = torch.empty(num_bytes, dtype=torch.int8, device=self._flushed.device).random_(-128, 127)
        return partial(torch.empty_like(source).copy_, source)

    def copy_gb_per_s(self, num_bytes: int = 1 << 30) -> float:
        """What the card copies, bytes read and bytes written counted: the limit of all that moves memory."""
        (time_us,) = self.medians_us([self.copying(num_bytes)], 20)
        return 2 * num_bytes / time_us / 1e3


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event
