"""How long the device takes for an operation, with nothing of it in the cache."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch

# Many times any card's second-level cache: the host has the time that this takes to queue the operation.
_FLUSH_BYTES = 1 << 30


class Timer:
    """Times operations in turn, so that a drift of the clocks meets all of them."""

    def __init__(self, device: torch.device) -> None:
        self._flushed = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)

    def medians_us(self, operations: Sequence[Callable[[], object]], repetitions: int = 30) -> list[float]:
        """Median time of each operation, in microseconds.

        Before each run the cache is overwritten; that takes the device longer than the host needs to queue the
        operation, so that launches are not part of the time, but gaps between an operation's own kernels are.

        What runs among the first after a wait takes a third of a microsecond less than what runs later. So each
        operation has each place equally often, and its time is the mean of its places' medians.

        Args:
            operations: what to time; each runs once before, untimed.
            repetitions: runs of each, rounded up to as many in each place.
        """
        count = len(operations)
        times: list[list[list[float]]] = [[[] for _ in operations] for _ in operations]
        for operation in operations:
            operation()
        for repetition in range(-(-repetitions // count) * count):
            events = []
            for place in range(count):
                index = (place + repetition) % count
                begin, end = _event(), _event()
                self._flushed.zero_()
                begin.record()
                operations[index]()
                end.record()
                events.append((times[index][place], begin, end))
            torch.cuda.synchronize()
            for taken, begin, end in events:
                taken.append(begin.elapsed_time(end) * 1e3)
        return [statistics.fmean(statistics.median(taken) for taken in places) for places in times]

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
