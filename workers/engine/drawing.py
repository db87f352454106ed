"""One token out of a distribution: temperature, top-k, top-p, min-p, and a number between 0 and 1.

The filters and their order are those of Hugging Face's generation: temperature, then the k most probable tokens, then
the smallest set of those whose share reaches p, then those at least ``min_p`` times as probable as the best; of equal
ones, the smaller ids. What is drawn is the first token that is left, by id, with which the mass of those left exceeds
the number's share of it.

**Masses are integers**: a token's is ``floor(2**34 * exp((logit - best) / temperature))``, held in floats, whose sums
are exact below 2**53, which a vocabulary of half a million cannot reach. So no sum depends on the order of its terms,
and every way to find the token finds the same one, on any number of threads and in any batch.

Rows without filters are drawn from by sums over blocks of the vocabulary. Filters nearly always keep a few of the most
probable tokens, which are found without sorting the vocabulary; where they keep more, ``filter_row`` finds their end by
sorting only the narrow ranges of logits that matter.
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
_SUMMED_BLOCK = 256
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
        self._mass = torch.empty(0, 0)
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
        sums = self._block_sums(mass)
        keeps_all = (filters.top_k >= scaled.shape[1]) & (filters.top_p >= 1) & (filters.min_p <= 0)
        if keeps_all.all():
            return _by_id(mass, sums, uniform)
        token_ids, decided = _among_best(scaled, mass, sums.sum(-1, keepdim=True), filters, uniform)
        others = (keeps_all[:, 0] | ~decided).nonzero()[:, 0]
        if not len(others):
            return token_ids
        for row in (~keeps_all[:, 0] & ~decided).nonzero()[:, 0].tolist():
            filter_row(
                scaled[row],
                mass[row, : scaled.shape[1]],
                top_k=int(filters.top_k[row]),
                top_p=float(filters.top_p[row]),
                min_p=float(filters.min_p[row]),
            )
            sums[row] = self._block_sums(mass[row : row + 1])[0]
        return token_ids.index_copy_(0, others, _by_id(mass[others], sums[others], uniform[others]))

    def _masses(self, scaled: Tensor) -> Tensor:
        """Masses, fp32 ``[num_rows, vocab]`` and some zeros, so that blocks are whole."""
        num_rows, vocab_size = scaled.shape
        width = -(-vocab_size // _SUMMED_BLOCK) * _SUMMED_BLOCK
        if self._mass.shape[0] < num_rows or self._mass.shape[1] != width:
            self._mass = torch.empty(num_rows, width)
        mass = self._mass[:num_rows]
        mass[:, vocab_size:] = 0
        torch.exp(scaled, out=mass[:, :vocab_size])
        return mass.mul_(ONE).floor_()

    def _block_sums(self, mass: Tensor) -> Tensor:
        """Sum blocks of masses exactly: float64 ``[num_rows, num_blocks]``."""
        num_rows, width = mass.shape
        if self._wide.numel() != width:
            self._wide = torch.empty(width, dtype=torch.float64)
        # Row by row, because a sum in another type would first copy all rows into fresh memory.
        sums = torch.empty(num_rows, width // _SUMMED_BLOCK, dtype=torch.float64)
        for row in range(num_rows):
            torch.sum(self._wide.copy_(mass[row]).view(-1, _SUMMED_BLOCK), dim=-1, out=sums[row])
        return sums


def _target(kept: Tensor, uniform: Tensor) -> Tensor:
    """The mass, less than that of all kept tokens, which the drawn one's sum exceeds."""
    return torch.minimum((uniform * kept).floor_(), kept - 1)


def _by_id(mass: Tensor, sums: Tensor, uniform: Tensor) -> Tensor:
    """Draw among all tokens that have a mass: int64 ``[num_rows]``."""
    cumulative = sums.cumsum(-1)
    target = _target(cumulative[:, -1:], uniform)
    block = _count(cumulative <= target)
    target -= cumulative.gather(1, block) - sums.gather(1, block)
    inside = mass.view(len(mass), -1, _SUMMED_BLOCK)[torch.arange(len(mass)), block[:, 0]].double().cumsum(-1)
    return (block * _SUMMED_BLOCK + _count(inside <= target))[:, 0]


def _among_best(
    scaled: Tensor, mass: Tensor, total: Tensor, filters: Filters, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw among the most probable tokens; also tell where those are all that is kept, bool ``[num_rows]``."""
    values, ids = _best(scaled)
    vocab_size, num_listed = scaled.shape[1], values.shape[1]
    # Tokens as probable as the last candidate may have been left out: only those before it are all here.
    num_sure = torch.full_like(ids[:, :1], vocab_size) if num_listed == vocab_size else _count(values > values[:, -1:])
    masses = mass.gather(1, ids).to(torch.float64)
    cumulative = masses.cumsum(dim=-1)
    keeps_any = filters.top_k >= vocab_size
    base = torch.where(keeps_any, total, cumulative.gather(1, (filters.top_k - 1).clamp(max=num_listed - 1)))
    nucleus = torch.where(filters.top_p >= 1, vocab_size, _count(cumulative < filters.top_p * base) + 1)
    plausible = torch.where(filters.min_p <= 0, vocab_size, _count(masses >= filters.min_p * ONE))
    num_kept = torch.minimum(torch.minimum(filters.top_k, nucleus), plausible)
    decided = (num_kept <= num_sure) & (keeps_any | (filters.top_p >= 1) | (filters.top_k <= num_sure))
    kept = masses.where(torch.arange(num_listed) < num_kept, 0.0)
    ids, order = ids.sort(dim=-1)
    cumulative = kept.gather(1, order).cumsum(dim=-1)
    choice = _count(cumulative <= _target(cumulative[:, -1:], uniform))
    return ids.gather(1, choice)[:, 0], decided[:, 0]


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


def filter_row(values: Tensor, mass: Tensor, *, top_k: int, top_p: float, min_p: float) -> None:
    """Take their masses from the tokens of a row that its filters do not keep, wherever the filters end.

    Args:
        values: fp32 ``[vocab]``, scaled logits less the greatest.
        mass: fp32 ``[vocab]``, integers.
        top_k: see ``Filters``.
        top_p: see ``Filters``.
        min_p: see ``Filters``.
    """
    order = _Buckets(values, mass)
    base = order.total
    if top_k < len(values):
        cut = order.after(top_k)
        base = cut.mass
        cut.apply(values, mass)
    if top_p < 1:
        order.at(top_p * base).apply(values, mass)
    if min_p > 0:
        mass.masked_fill_(order.mass < min_p * ONE, 0.0)


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where the falling order is cut.

    Attributes:
        mass: of the tokens before the cut.
        least: the value of the last of them.
        later: ids behind the cut, int64; all that are of this value, and others.
    """

    mass: float
    least: float
    later: Tensor

    def apply(self, values: Tensor, mass: Tensor) -> None:
        mass.masked_fill_(values < self.least, 0.0)
        mass[self.later] = 0.0


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

    def at(self, mass: float) -> _Cut:
        """Cut behind the first token with which the cumulative mass is at least ``mass``."""
        bucket = int(torch.searchsorted(self._cumulative, mass))
        cumulative, ids = self._sorted(bucket)
        return self._cut(cumulative, ids, int(torch.searchsorted(cumulative, mass)))

    def after(self, num_tokens: int) -> _Cut:
        """Cut behind the ``num_tokens`` most probable tokens."""
        counts = torch.bincount(self._bucket, minlength=_NUM_BUCKETS).cumsum(0)
        bucket = int(torch.searchsorted(counts, num_tokens))
        num_before = int(counts[bucket - 1]) if bucket else 0
        return self._cut(*self._sorted(bucket), num_tokens - num_before - 1)

    def _cut(self, cumulative: Tensor, ids: Tensor, place: int) -> _Cut:
        return _Cut(float(cumulative[place]), float(self._values[ids[place]]), ids[place + 1 :])

    def _sorted(self, bucket: int) -> tuple[Tensor, Tensor]:
        """A bucket's cumulative masses, counted from the very first token, and its ids, in order."""
        ids = (self._bucket == bucket).nonzero()[:, 0]
        ids = ids[self._values[ids].sort(descending=True, stable=True).indices]
        before = self._cumulative[bucket] - self._masses[bucket]
        return self.mass[ids].cumsum(0) + before, ids
