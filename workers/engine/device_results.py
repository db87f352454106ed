"""One step's tokens and logarithms, and their one way from a GPU to the host."""

import torch
from torch import Tensor

from headrace.errors import KernelError
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


class DeviceResults:
    """Memory for one step's results on the GPU, and pinned memory that they are copied to.

    Args:
        max_rows: of a step.
        device: the GPU.
    """

    def __init__(self, max_rows: int, device: torch.device) -> None:
        num_bytes = _Layout.num_bytes(max_rows)
        self._there = _Layout(torch.zeros(num_bytes, dtype=torch.uint8, device=device), max_rows)
        self._here = _Layout(torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=True), max_rows)
        self._scales = torch.empty(max_rows, 2, dtype=torch.float32, device=device)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._sent: tuple[int, tuple[tuple[int, int], ...]] | None = None

    def tokens(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Where token ids go, int64 ``[num_rows]``, and whether they are valid, bool ``[num_rows]``."""
        return self._there.token_ids[:num_rows], self._there.valid[:num_rows]

    def logprobs(self, num_rows: int) -> LogprobResults:
        """Where logarithms go."""
        there = self._there
        return LogprobResults(
            there.chosen[:num_rows], there.top_ids[:num_rows], there.top_logprobs[:num_rows], self._scales[:num_rows]
        )

    def send(self, num_rows: int, asking: tuple[tuple[int, int], ...]) -> None:
        """Queue the copy to the host.

        Args:
            num_rows: of the step.
            asking: indices of the rows that ask for logarithms, and for how many tokens beside the chosen one.
        """
        end = len(self._there.block) if asking else self._there.end_of_tokens
        self._here.block[:end].copy_(self._there.block[:end], non_blocking=True)
        self._arrived.record()
        self._sent = num_rows, asking

    def take(self) -> Sampled:
        """Wait for the copy, and read it.

        Raises:
            KernelError: nothing was sent since the last time.
        """
        if self._sent is None:
            raise KernelError("no step's results are on their way")
        (num_rows, asking), self._sent = self._sent, None
        self._arrived.synchronize()
        return Sampled(
            self._here.token_ids[:num_rows].tolist(),
            self._here.valid[:num_rows].tolist(),
            {index: self._logprobs_of(index, count) for index, count in asking},
        )

    def _logprobs_of(self, index: int, count: int) -> Logprobs:
        ids, logprobs = self._here.top_ids[index, :count].tolist(), self._here.top_logprobs[index, :count].tolist()
        return Logprobs(float(self._here.chosen[index]), tuple(zip(ids, logprobs, strict=True)))
