"""Steps' tokens and logarithms, and their one way from a GPU to the host."""

from collections.abc import Iterable
from itertools import cycle

import torch
from torch import Tensor

from headrace.kernels.logprobs import LogprobResults
from headrace.request import MAX_LOGPROBS
from headrace.workers.engine.logprobs import Logprobs
from headrace.workers.engine.sampled import Sampled

_INT64_BYTES, _WORD_BYTES = 8, 4


class _Layout:
    """The results within one block of bytes: what every step brings first, so that the rest may stay behind."""

    def __init__(self, block: Tensor, max_rows: int) -> None:
        self.block = block
        end = 0

        def cut(dtype: torch.dtype, *shape: int) -> Tensor:
            nonlocal end
            first, end = end, end + torch.Size(shape).numel() * dtype.itemsize
            part = block[first:end].view(dtype).view(shape)
            end = -(-end // _INT64_BYTES) * _INT64_BYTES
            return part

        self.token_ids = cut(torch.int64, max_rows)
        self.valid = cut(torch.bool, max_rows)
        self.end_of_tokens = end
        self.chosen = cut(torch.float32, max_rows)
        self.top_ids = cut(torch.int32, max_rows, MAX_LOGPROBS)
        self.top_logprobs = cut(torch.float32, max_rows, MAX_LOGPROBS)

    @staticmethod
    def num_bytes(max_rows: int) -> int:
        """Enough for each part, rounded up."""
        return max_rows * (_INT64_BYTES + 1 + _WORD_BYTES * (1 + 2 * MAX_LOGPROBS)) + 5 * _INT64_BYTES


class Sent:
    """One step's results on their way.

    Args:
        here: pinned memory that they are copied to.
        began: recorded before the step's first work.
        arrived: recorded after the copy.
    """

    def __init__(self, here: _Layout, began: torch.cuda.Event, arrived: torch.cuda.Event) -> None:
        self._here, self._began, self._arrived = here, began, arrived

    def take(self, num_rows: int, asking: Iterable[tuple[int, int]]) -> Sampled:
        """Wait for them, and read them.

        Args:
            num_rows: of the step.
            asking: indices of the rows that ask for logarithms, and for how many tokens beside the chosen one.
        """
        self._arrived.synchronize()
        return Sampled(
            self._here.token_ids[:num_rows].tolist(),
            self._here.valid[:num_rows].tolist(),
            {index: self._logprobs_of(index, count) for index, count in asking},
        )

    @property
    def step_ms(self) -> float:
        """What the step took the GPU, once it has ended."""
        return float(self._began.elapsed_time(self._arrived))

    def _logprobs_of(self, index: int, count: int) -> Logprobs:
        ids, logprobs = self._here.top_ids[index, :count].tolist(), self._here.top_logprobs[index, :count].tolist()
        return Logprobs(float(self._here.chosen[index]), tuple(zip(ids, logprobs, strict=True)))


class DeviceResults:
    """Memory for one step's results on the GPU, and for those of several steps on the host.

    On the GPU one is enough: the next step writes there after the copy of this one's.

    Args:
        max_rows: of a step.
        device: the GPU.
        num_steps: whose results may be on their way, or not yet be read, at once.
    """

    def __init__(self, max_rows: int, device: torch.device, num_steps: int = 1) -> None:
        num_bytes = _Layout.num_bytes(max_rows)
        self._there = _Layout(torch.zeros(num_bytes, dtype=torch.uint8, device=device), max_rows)
        self._scales = torch.empty(max_rows, 2, dtype=torch.float32, device=device)
        self._slots = cycle(
            [
                (_Layout(torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=True), max_rows), _event(), _event())
                for _ in range(num_steps)
            ]
        )
        self._slot = next(self._slots)

    def begin(self) -> None:
        """Begin a step: its time counts from here."""
        self._slot = next(self._slots)
        self._slot[1].record()

    def tokens(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Where token ids go, int64 ``[num_rows]``, and whether they are valid, bool ``[num_rows]``."""
        return self._there.token_ids[:num_rows], self._there.valid[:num_rows]

    def logprobs(self, num_rows: int) -> LogprobResults:
        """Where logarithms go."""
        there = self._there
        return LogprobResults(
            there.chosen[:num_rows], there.top_ids[:num_rows], there.top_logprobs[:num_rows], self._scales[:num_rows]
        )

    def send(self, *, with_tokens: bool = True, with_logprobs: bool = False) -> Sent:
        """Queue the copy to the host, and end the step."""
        here, began, arrived = self._slot
        end = len(self._there.block) if with_logprobs else self._there.end_of_tokens if with_tokens else 0
        if end:
            here.block[:end].copy_(self._there.block[:end], non_blocking=True)
        arrived.record()
        return Sent(here, began, arrived)


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event
