"""From logits to tokens: greedy, temperature, top-k, top-p, min-p, all rows at once.

The filters and their order are those of Hugging Face's generation: temperature, then the k most probable tokens, then
the smallest set of those whose share reaches p, then those at least ``min_p`` times as probable as the best. What is
left is drawn from by inverting its cumulative distribution in the order of falling probability, with one number
(``uniform``) a token: no result depends on who else is in the batch.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.workers.engine.sequence import Sequence
from headrace.workers.engine.uniform import uniform

# Nearly all draws fall among this many tokens; sorting the rest of a vocabulary costs ten times as much.
_NUM_CANDIDATES = 256


@dataclass(frozen=True, slots=True)
class Sampled:
    """One step's draws.

    Attributes:
        token_ids: a row each.
        valid: a row each, False where its logits are not numbers; its token id is then meaningless.
    """

    token_ids: list[int]
    valid: list[bool]


@dataclass(frozen=True, slots=True)
class _Params:
    """Sampling parameters of rows, ``[num_rows, 1]`` each; ``top_k`` is int64, the others float64.

    A ``top_k`` of ``vocab_size`` keeps all tokens.
    """

    vocab_size: int
    uniform: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor

    @classmethod
    def of(cls, rows: Rows[Sequence], vocab_size: int) -> "_Params":
        params = [row.params for row in rows]

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64)[:, None]

        return cls(
            vocab_size,
            column([uniform(row.params.seed, row.num_output_tokens) for row in rows]),
            column([p.temperature for p in params]),
            torch.tensor([min(p.top_k or vocab_size, vocab_size) for p in params])[:, None],
            column([p.top_p for p in params]),
            column([p.min_p for p in params]),
        )

    def select(self, rows: Tensor) -> "_Params":
        return _Params(
            self.vocab_size,
            self.uniform[rows],
            self.temperature[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.min_p[rows],
        )


def sample(logits: Tensor, rows: Rows[Sequence]) -> Sampled:
    """Draw one token a row.

    Args:
        logits: fp32 ``[num_rows, vocab]``; overwritten.
        rows: whose logits these are, with nothing drawn at this position yet.

    Returns:
        The tokens, on the host.
    """
    _forbid_early_stop(logits, rows)
    best, token_ids = logits.max(dim=-1)
    drawing = [index for index, row in enumerate(rows) if row.params.temperature > 0]
    if drawing:
        index = torch.tensor(drawing)
        params = _Params.of([rows[i] for i in drawing], logits.shape[1])
        shifted = logits[index].sub_(best[index, None])
        token_ids[index] = _draw(shifted, params)
    return Sampled(token_ids.tolist(), best.isfinite().tolist())


def _forbid_early_stop(logits: Tensor, rows: Rows[Sequence]) -> None:
    for index, row in enumerate(rows):
        if row.num_output_tokens < row.params.min_tokens and row.stop_ids:
            logits[index, [stop for stop in row.stop_ids if 0 <= stop < logits.shape[1]]] = -torch.inf


def _draw(shifted: Tensor, params: _Params) -> Tensor:
    """Draw from ``shifted [num_rows, vocab]``, logits less the row's greatest: int64 ``[num_rows]``."""
    # A temperature below fp32's smallest number is as greedy as that one, and not a division by zero.
    temperature = params.temperature.to(torch.float32).clamp_(min=torch.finfo(torch.float32).tiny)
    scaled = shifted.div_(temperature)
    # float64, so that the sum does not depend on how its terms are spread over threads.
    total = scaled.exp().sum(dim=-1, keepdim=True, dtype=torch.float64)
    num_candidates = min(_NUM_CANDIDATES, scaled.shape[1])
    values, ids = scaled.topk(num_candidates)
    choice, decided = _invert(values, total, params)
    token_ids = ids.gather(1, choice)
    if not decided.all():
        rest = (~decided).nonzero()[:, 0]
        values, ids = scaled[rest].sort(dim=-1, descending=True, stable=True)
        choice, _ = _invert(values, total[rest], params.select(rest))
        token_ids[rest] = ids.gather(1, choice)
    return token_ids[:, 0]


def _invert(values: Tensor, total: Tensor, params: _Params) -> tuple[Tensor, Tensor]:
    """Invert the cumulative distribution over the most probable tokens.

    Args:
        values: ``[num_rows, n]``, scaled logits less the greatest, falling: the best token's is 0.
        total: float64 ``[num_rows, 1]``, sum of the exponentials over the whole vocabulary.
        params: of the rows.

    Returns:
        Indices into ``values``, int64 ``[num_rows, 1]``, and whether they are right, bool ``[num_rows]``: they are
        not where the draw may be among tokens beyond the ``n`` that are given, or where the sum that p is a share of
        is not known, because the k most probable tokens are more than ``n``.
    """
    n = values.shape[1]
    mass = values.to(torch.float64).exp_()
    cumulative = mass.cumsum(dim=-1)
    in_top_k = torch.arange(n)[None, :] < params.top_k
    by_top_k = params.top_k <= n
    total = torch.where(by_top_k, cumulative.gather(1, (params.top_k - 1).clamp_(max=n - 1)), total)
    # A token stays while those before it do not reach p: the first token always does.
    stays = in_top_k & (cumulative - mass < params.top_p * total) & (mass >= params.min_p)
    num_kept = stays.sum(dim=-1, keepdim=True).clamp_(min=1)
    unfiltered = (params.top_p >= 1) & (params.min_p <= 0)
    kept_mass = torch.where(unfiltered, total, cumulative.gather(1, num_kept - 1))
    target = params.uniform * kept_mass
    choice = torch.searchsorted(cumulative, target, right=True)
    whole = params.top_k >= params.vocab_size
    decided = by_top_k | (whole & ((num_kept < n) | (unfiltered & (choice < n))))
    return torch.minimum(choice, num_kept - 1), decided[:, 0]
