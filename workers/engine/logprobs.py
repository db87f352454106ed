"""How probable tokens were to the model itself: its logits' log-softmax, before anything of the request changes them.

Penalties, biases, bans, temperature and filters say what is drawn, not what the model thinks; vLLM's default
(``raw_logprobs``) is of the same distribution.
"""

from collections.abc import Sequence as Rows
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.workers.engine.sequence import Sequence

#: Stands for "hardly ever": JSON has no infinity.
LEAST_LOGPROB = -9999.0


class Logprobs(NamedTuple):
    """Of one drawn token.

    Attributes:
        logprob: natural logarithm of its probability.
        top: the most probable tokens, falling, of equal ones the smaller id first: ids and logarithms; as many as the
            row asks for.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


class RawLogprobs:
    """The distributions of those rows of a step that ask for them; keeps its memory from step to step."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)
        self._asked: list[tuple[int, int]] = []

    def take(self, logits: Tensor, rows: Rows[Sequence]) -> None:
        """Look at a step's logits, before they are changed.

        Args:
            logits: fp32 ``[num_rows, vocab]``.
            rows: whose they are.
        """
        self._asked = [(i, row.params.logprobs) for i, row in enumerate(rows) if row.params.logprobs is not None]
        if not self._asked:
            return
        shape = (len(self._asked), logits.shape[1])
        if self._memory.numel() < shape[0] * shape[1]:
            self._memory = torch.empty(shape[0] * shape[1])
        self._raw = self._memory[: shape[0] * shape[1]].view(shape)
        log_totals = []
        for place, (index, _) in enumerate(self._asked):
            row = self._raw[place].copy_(logits[index])
            best = row.max()
            # The sum in float64, so that it does not depend on how its terms are spread over threads.
            log_totals.append(best + (row - best).exp_().sum(dtype=torch.float64).log())
        self._log_total = torch.stack(log_totals)[:, None]

    def of(self, token_ids: Rows[int]) -> dict[int, Logprobs]:
        """Tell about the tokens drawn, ``num_rows`` of them; by index of the row, those that asked."""
        if not self._asked:
            return {}
        num_top = min(max(count for _, count in self._asked), self._raw.shape[1])
        ids = torch.stack([_greatest(row, num_top) for row in self._raw])
        chosen = torch.tensor([token_ids[index] for index, _ in self._asked])[:, None]
        logprobs = self._log(self._raw.gather(1, chosen))
        top = zip(ids.tolist(), self._log(self._raw.gather(1, ids)), strict=True)
        return {
            index: Logprobs(logprob, tuple(zip(top_ids[:count], top_logprobs[:count], strict=True)))
            for (index, count), (logprob,), (top_ids, top_logprobs) in zip(self._asked, logprobs, top, strict=True)
        }

    def _log(self, values: Tensor) -> list[list[float]]:
        found: list[list[float]] = (values - self._log_total).clamp_(min=LEAST_LOGPROB).tolist()
        return found


def _greatest(row: Tensor, count: int) -> Tensor:
    """Ids of a row's greatest numbers, falling; of equal ones the smaller id, which ``topk`` leaves open."""
    values, ids = row.topk(count)
    if not count or values.isnan().any():
        return ids  # of such a row nothing is told
    found = (row >= values[-1]).nonzero().squeeze(1)
    return found[row[found].sort(descending=True, stable=True).indices[:count]]
