"""One token out of a distribution: temperature, top-k, top-p, min-p, and a number between 0 and 1.

The filters and their order are those of Hugging Face's generation: temperature, then the k most probable tokens, then
the smallest set of those whose share reaches p, then those at least ``min_p`` times as probable as the best. What is
left is drawn from by inverting its cumulative distribution in the order of falling probability, equal ones by id.

**Masses are integers**: a token's is ``floor(2**34 * exp((logit - best) / temperature))``, held in floats, whose sums
are exact below 2**53, which a vocabulary of half a million cannot reach. So no sum depends on the order of its terms,
and every way to find the token finds the same one, on any number of threads and in any batch. All filters keep the
front of one order, so that what they keep together is known by its mass, the least of theirs.

Two ways are here. Nearly all draws fall among the most probable tokens, which are found without sorting the
vocabulary; ``bucketed`` finds the others by sorting only the two or three narrow ranges of logits that matter.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

#: Mass of the best token.
ONE = float(1 << 34)
#: Logits this far below the best one (over temperature) have no mass.
_SPAN = 24.0
_NUM_CANDIDATES = 64
_BLOCK = 32
_NUM_BUCKETS = 2048


@dataclass(frozen=True, slots=True)
class Filters:
    """How rows draw: ``[num_rows, 1]`` each.

    Attributes:
        temperature: fp32, a normal number > 0.
        top_k: int64, tokens kept; the vocabulary's size keeps all.
        top_p: float64, share kept, in (0, 1].
        min_p: float64, least mass kept, as a share of the best token's.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor


class Drawer:
    """Draws; keeps the memory of masses from step to step, because fresh pages cost more than the sums over them."""

    def __init__(self) -> None:
        self._mass = torch.empty(0)
        self._wide = torch.empty(0, dtype=torch.float64)

    def draw(self, shifted: Tensor, filters: Filters, uniform: Tensor) -> Tensor:
        """Draw a token a row.

        Args:
            shifted: fp32 ``[num_rows, vocab]``, logits less the row's greatest, which is finite; overwritten.
            filters: of the rows.
            uniform: float64 ``[num_rows, 1]``, in [0, 1).

        Returns:
            Token ids, int64 ``[num_rows]``.
        """
        scaled = shifted.div_(filters.temperature)
        mass = self._masses(scaled)
        token_ids, decided = _among_best(scaled, mass, self._totals(mass), filters, uniform)
        for row in (~decided).nonzero()[:, 0].tolist():
            token_ids[row] = bucketed(
                scaled[row],
                mass[row],
                uniform=float(uniform[row]),
                top_k=int(filters.top_k[row]),
                top_p=float(filters.top_p[row]),
                min_p=float(filters.min_p[row]),
            )
        return token_ids

    def _masses(self, scaled: Tensor) -> Tensor:
        if self._mass.numel() < scaled.numel():
            self._mass = torch.empty(scaled.numel())
        mass = self._mass[: scaled.numel()].view(scaled.shape)
        return torch.exp(scaled, out=mass).mul_(ONE).floor_()

    def _totals(self, mass: Tensor) -> Tensor:
        """Sum masses exactly: float64 ``[num_rows, 1]``."""
        num_rows, vocab_size = mass.shape
        if self._wide.numel() != vocab_size:
            self._wide = torch.empty(vocab_size, dtype=torch.float64)
        # Row by row, because a sum in another type would first copy all rows into fresh memory.
        totals = torch.empty(num_rows, 1, dtype=torch.float64)
        for row in range(num_rows):
            totals[row] = self._wide.copy_(mass[row]).sum()
        return totals


def _among_best(
    scaled: Tensor, mass: Tensor, total: Tensor, filters: Filters, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw among the most probable tokens; also tell where that is right, bool ``[num_rows]``.

    It is not where the draw, or the end of what a filter keeps, lies beyond them.
    """
    values, ids = _best(scaled)
    vocab_size, last = scaled.shape[1], values.shape[1] - 1
    # Tokens as probable as the last candidate may have been left out: only those before it are all here.
    num_sure = torch.full_like(ids[:, :1], vocab_size) if last + 1 == vocab_size else _count(values > values[:, -1:])
    cumulative = mass.gather(1, ids).to(torch.float64).cumsum(dim=-1)
    base = torch.where(filters.top_k >= vocab_size, total, cumulative.gather(1, (filters.top_k - 1).clamp(max=last)))
    nucleus = _count(cumulative < filters.top_p * base)
    plausible = _count(mass.gather(1, ids) >= filters.min_p * ONE)
    by_p = torch.where(filters.top_p >= 1, base, cumulative.gather(1, nucleus.clamp(max=last)))
    by_min_p = torch.where(filters.min_p <= 0, base, cumulative.gather(1, (plausible - 1).clamp(min=0)))
    kept = torch.minimum(torch.minimum(base, by_p), by_min_p)
    choice = _count(cumulative <= torch.minimum((uniform * kept).floor_(), kept - 1))
    decided = choice < num_sure
    decided &= (filters.top_k >= vocab_size) | (filters.top_k <= num_sure)
    decided &= (filters.top_p >= 1) | (nucleus < num_sure)
    decided &= (filters.min_p <= 0) | (plausible <= num_sure)
    return ids.gather(1, choice.clamp(max=last))[:, 0], decided[:, 0]


def _best(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable tokens in order, ``[num_rows, min(vocab, _NUM_CANDIDATES)]``: values and ids.

    They lie in those ``_NUM_CANDIDATES`` blocks of the vocabulary that have the greatest maxima: each token that is
    not there is behind the maximum of each of these blocks.
    """
    num_rows, vocab_size = scaled.shape
    num_blocks = vocab_size // _BLOCK
    num_whole = num_blocks * _BLOCK
    ids = torch.arange(vocab_size).expand(num_rows, -1)
    if num_blocks > 2 * _NUM_CANDIDATES:
        best_blocks = scaled[:, :num_whole].view(num_rows, num_blocks, _BLOCK).amax(-1).topk(_NUM_CANDIDATES).indices
        inside = (best_blocks[:, :, None] * _BLOCK + torch.arange(_BLOCK)).view(num_rows, -1)
        ids = torch.cat([inside, ids[:, num_whole:]], dim=1)
    places = scaled.gather(1, ids).topk(min(_NUM_CANDIDATES, vocab_size), sorted=False).indices
    ids = ids.gather(1, places).sort(dim=-1).values
    values, order = scaled.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _count(mask: Tensor) -> Tensor:
    return mask.sum(dim=-1, keepdim=True)


def bucketed(values: Tensor, mass: Tensor, *, uniform: float, top_k: int, top_p: float, min_p: float) -> int:
    """Draw one token of one row, wherever it may be.

    Args:
        values: fp32 ``[vocab]``, scaled logits less the greatest.
        mass: fp32 ``[vocab]``, integers.
        uniform: in [0, 1).
        top_k: see ``Filters``.
        top_p: see ``Filters``.
        min_p: see ``Filters``.
    """
    order = _Buckets(values, mass)
    kept = order.total if top_k >= len(values) else order.mass_of_first(top_k)
    if top_p < 1:
        kept = min(kept, order.reach(top_p * kept, right=False)[0])
    if min_p > 0:
        kept = min(kept, float(order.mass[order.mass >= min_p * ONE].sum()))
    return order.reach(min(float(int(uniform * kept)), kept - 1), right=True)[1]


class _Buckets:
    """The tokens of a row in order of falling probability, sorted only where somebody looks.

    Each bucket holds the tokens of a narrow range of values, and buckets fall.
    """

    def __init__(self, values: Tensor, mass: Tensor) -> None:
        self.mass = mass.to(torch.float64)
        self._values = values
        width = max(min(-float(values.min()), _SPAN), 1e-30) / (_NUM_BUCKETS - 1)
        self._bucket = (values / -width).clamp_(max=_NUM_BUCKETS - 1).to(torch.int64)
        self._masses = torch.bincount(self._bucket, weights=self.mass, minlength=_NUM_BUCKETS)
        self._cumulative = self._masses.cumsum(0)
        self.total = float(self._cumulative[-1])

    def reach(self, mass: float, *, right: bool) -> tuple[float, int]:
        """Find the first token with which the cumulative mass is at least (``right``: more than) ``mass``.

        Returns:
            The cumulative mass with it, and its id.
        """
        bucket = int(torch.searchsorted(self._cumulative, mass, right=right))
        cumulative, ids = self._sorted(bucket)
        place = int(torch.searchsorted(cumulative, mass, right=right))
        return float(cumulative[place]), int(ids[place])

    def mass_of_first(self, num_tokens: int) -> float:
        """Mass of the ``num_tokens`` most probable tokens."""
        counts = torch.bincount(self._bucket, minlength=_NUM_BUCKETS).cumsum(0)
        bucket = int(torch.searchsorted(counts, num_tokens))
        num_before = int(counts[bucket - 1]) if bucket else 0
        return float(self._sorted(bucket)[0][num_tokens - num_before - 1])

    def _sorted(self, bucket: int) -> tuple[Tensor, Tensor]:
        """A bucket's cumulative masses, counted from the very first token, and its ids, in order."""
        ids = (self._bucket == bucket).nonzero()[:, 0]
        ids = ids[self._values[ids].sort(descending=True, stable=True).indices]
        before = self._cumulative[bucket] - self._masses[bucket]
        return self.mass[ids].cumsum(0) + before, ids
