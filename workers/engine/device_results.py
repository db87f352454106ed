"""Steps' tokens and logarithms, and their way from a GPU to the host."""

from collections.abc import Iterable
from itertools import cycle

import torch
from torch import Tensor

from headrace.kernels.logprobs import LogprobResults
from headrace.kernels.tell_host import tell_host
from headrace.request import MAX_LOGPROBS
from headrace.workers.engine.logprobs import Logprobs
from headrace.workers.engine.sampled import Sampled


class _Logarithms:
    """Logarithms of one step's tokens, in one block that is copied as a whole."""

    def __init__(self, block: Tensor, max_rows: int) -> None:
        self.block = block
        self.chosen = block[:max_rows].view(torch.float32)
        self.top_ids, logprobs = block[max_rows:].view(2, max_rows, MAX_LOGPROBS)
        self.top_logprobs = logprobs.view(torch.float32)

    @staticmethod
    def num_words(max_rows: int) -> int:
        """Enough for each part."""
        return max_rows * (1 + 2 * MAX_LOGPROBS)

    def of(self, index: int, count: int) -> Logprobs:
        """Those of one row, on the host."""
        ids, logprobs = self.top_ids[index, :count].tolist(), self.top_logprobs[index, :count].tolist()
        return Logprobs(float(self.chosen[index]), tuple(zip(ids, logprobs, strict=True)))


class Sent:
    """One step's results on their way.

    Args:
        told: its tokens, int32 ``[max_rows]``, -1 where there is none, in memory that the GPU writes to.
        logarithms: of these, in memory that they are copied to.
        began: recorded before the step's first work.
        arrived: recorded behind the results.
    """

    def __init__(
        self, told: Tensor, logarithms: _Logarithms, began: torch.cuda.Event, arrived: torch.cuda.Event
    ) -> None:
        self._told, self._logarithms, self._began, self._arrived = told, logarithms, began, arrived

    def take(self, num_rows: int, asking: Iterable[tuple[int, int]]) -> Sampled:
        """Wait for them, and read them.

        Args:
            num_rows: of the step.
            asking: indices of the rows that ask for logarithms, and for how many tokens beside the chosen one.
        """
        self._arrived.synchronize()
        tokens = self._told[:num_rows].tolist()
        return Sampled(
            tokens,
            [token_id >= 0 for token_id in tokens],
            {index: self._logarithms.of(index, count) for index, count in asking},
        )

    @property
    def step_ms(self) -> float:
        """What the step took the GPU, once it has ended."""
        return float(self._began.elapsed_time(self._arrived))


class DeviceResults:
    """Memory for one step's results on the GPU, and for those of several steps on the host.

    On the GPU one is enough: the next step writes there after this one's are on their way.

    Args:
        max_rows: of a step.
        device: the GPU.
        num_steps: whose results may be on their way, or not yet be read, at once.
    """

    def __init__(self, max_rows: int, device: torch.device, num_steps: int = 1) -> None:
        def words(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        def locked(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, pin_memory=device.type == "cuda")

        self._token_ids = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._valid = torch.zeros(max_rows, dtype=torch.bool, device=device)
        self._scales = torch.empty(max_rows, 2, dtype=torch.float32, device=device)
        num_words = _Logarithms.num_words(max_rows)
        self._there = _Logarithms(words(num_words), max_rows)
        self._slots = cycle([(_Logarithms(locked(num_words), max_rows), _event(), _event()) for _ in range(num_steps)])
        self._slot = next(self._slots)
        self._told, self._turn, self._turns_taken = locked(num_steps, max_rows), words(1), 0

    def begin(self) -> None:
        """Begin a step: its time counts from here."""
        self._slot = next(self._slots)
        self._slot[1].record()

    def tokens(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Where token ids go, int64 ``[num_rows]``, and whether they are valid, bool ``[num_rows]``."""
        return self._token_ids[:num_rows], self._valid[:num_rows]

    def logprobs(self, num_rows: int) -> LogprobResults:
        """Where logarithms go."""
        there = self._there
        return LogprobResults(
            there.chosen[:num_rows], there.top_ids[:num_rows], there.top_logprobs[:num_rows], self._scales[:num_rows]
        )

    def tell(self, num_rows: int) -> None:
        """Launch what tells the host a step's tokens; once in each step that has any, and a graph may hold it."""
        tell_host(self._told, self._turn, *self.tokens(num_rows))

    def send(self, *, with_tokens: bool = True, with_logprobs: bool = False) -> Sent:
        """Say which results the step has, and end it."""
        here, began, arrived = self._slot
        if with_logprobs:
            here.block.copy_(self._there.block, non_blocking=True)
        arrived.record()
        turn = self._turns_taken % len(self._told)
        self._turns_taken += with_tokens
        return Sent(self._told[turn], here, began, arrived)

    def forget(self) -> None:
        """Set the GPU's turn to the host's: a step was begun and not ended, and nothing is at work."""
        self._turn.fill_(self._turns_taken % len(self._told))


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event
