"""Plain torch for sampling: the whole vocabulary sorted, all sums in fp64: the oracle of ``sampling``."""

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.logit_edits import WORD_BITS, Edits
from headrace.kernels.penalties import Penalties
from headrace.kernels.sampling import Draws, SamplingParameters

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
IN_PROMPT = 0x8000


@dataclass(frozen=True, slots=True)
class Kept:
    """What of all rows is kept, and what is drawn from it: the first token whose sum exceeds the target.

    Attributes:
        mass: fp64 ``[num_rows, vocab]``, by id; a row's best token has the mass 1, tokens that are not kept have none.
        cumulative: likewise, with all before them.
        target: fp64 ``[num_rows]``.
    """

    mass: Tensor
    cumulative: Tensor
    target: Tensor

    @property
    def token_ids(self) -> Tensor:
        """The tokens drawn, int64 ``[num_rows]``."""
        return torch.searchsorted(self.cumulative, self.target[:, None], right=True)[:, 0]


def uniform(seed: int, position: int) -> float:
    """The random number of a position, as ``workers/engine/uniform.py`` has it."""

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    state = mix((seed + _GOLDEN_GAMMA) & _MASK) + (position + 1) * _GOLDEN_GAMMA
    return (mix(state & _MASK) >> 11) * 2.0**-53


def penalise(logits: Tensor, penalties: Penalties) -> Tensor:
    """Apply penalties: fp32 ``[num_rows, vocab]``."""
    num_rows, vocab = logits.shape
    logits = logits.float()
    slots = penalties.slots[:num_rows].long()
    counts = penalties.counts[slots.clamp(min=0), :vocab].int() & 0xFFFF
    counts = counts.masked_fill(slots[:, None] < 0, 0)
    generated = counts & (IN_PROMPT - 1)
    repetition, presence, frequency = (
        column[:num_rows, None] for column in (penalties.repetition, penalties.presence, penalties.frequency)
    )
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(counts > 0, repeated, logits)
    return torch.where(generated > 0, logits - generated * frequency - presence, logits)


def keep(logits: Tensor, parameters: SamplingParameters, penalties: Penalties | None = None) -> Kept:
    """Sort and filter, in fp32 or, given fp64, in that; greedy rows are those of ``top_k`` 1."""
    num_rows, vocab = logits.shape
    wide = torch.promote_types(logits.dtype, torch.float32)
    logits = logits.to(wide) if penalties is None else penalise(logits, penalties)
    temperature = parameters.temperature[:num_rows]
    greedy = temperature <= 0
    values, token_ids = logits.sort(dim=-1, descending=True, stable=True)
    tiny = torch.finfo(torch.float32).tiny
    scaled = (values - values[:, :1]) / temperature.where(~greedy, 1.0).clamp(min=tiny)[:, None]
    mass = scaled.exp().double()
    cumulative = mass.cumsum(dim=-1)
    top_k = parameters.top_k[:num_rows].long()
    top_k = top_k.where(top_k > 0, vocab).clamp(max=vocab).where(~greedy, 1)
    total = cumulative.gather(1, top_k[:, None] - 1)
    top_p, min_p = parameters.top_p[:num_rows, None], parameters.min_p[:num_rows, None]
    index = torch.arange(vocab, device=logits.device)
    stays = (index < top_k[:, None]) & (mass >= min_p) & ((top_p >= 1) | (cumulative - mass < top_p.double() * total))
    stays[:, 0] = True
    mass = torch.zeros_like(mass).scatter_(1, token_ids, mass.where(stays, 0.0))
    cumulative = mass.cumsum(dim=-1)
    seeds = parameters.seed[:num_rows].tolist()
    positions = (parameters.position - parameters.num_prompt_tokens)[:num_rows].tolist()
    draws = [uniform(seed & _MASK, position) for seed, position in zip(seeds, positions, strict=True)]
    # A product that is rounded up to all of the mass would be exceeded by no token.
    share = torch.tensor(draws, dtype=torch.float64, device=logits.device).clamp(max=1 - 2.0**-50)
    return Kept(mass, cumulative, share * cumulative[:, -1])


def sample(logits: Tensor, parameters: SamplingParameters, *, penalties: Penalties | None = None) -> Draws:
    """Draw one token a row; the counts of penalties are left as they are."""
    adjusted = logits.float() if penalties is None else penalise(logits, penalties)
    valid = adjusted.max(dim=-1).values.isfinite()
    kept = keep(adjusted.nan_to_num(0.0).where(valid[:, None], 0.0), parameters)
    return Draws(kept.token_ids.where(valid, 0), valid)


def edit_logits(logits: Tensor, places: Tensor, edits: Edits) -> None:
    """Add to single logits in place, then forbid; what ``unbiased`` keeps is left as it is."""
    for row, place in enumerate(places.tolist()):
        if place < 0:
            continue
        num_biases = int(edits.num_biases[place])
        ids = edits.bias_ids[place, :num_biases].long()
        logits[row, ids] = (logits[row, ids].float() + edits.biases[place, :num_biases]).to(logits.dtype)
        bits = edits.forbidden[place, :, None] >> torch.arange(WORD_BITS, device=logits.device) & 1
        logits[row, bits.flatten()[: logits.shape[1]].bool()] = -torch.inf


def top_logprobs(logits: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
    """The most probable tokens of each row and their logarithms, at least -9999; equal ones by id."""
    ids = logits.float().sort(dim=-1, descending=True, stable=True).indices[:, :num_top]
    return ids, logits.double().log_softmax(dim=-1).clamp(min=-9999.0).gather(1, ids)


def count_tokens(counts: Tensor, token_ids: Tensor, num_prompt_tokens: int) -> None:
    """Count by ``bincount``."""
    vocab = counts.shape[0]
    generated = torch.bincount(token_ids[num_prompt_tokens:], minlength=vocab)
    generated[token_ids[:num_prompt_tokens]] += IN_PROMPT
    counts.copy_(torch.where(generated >= IN_PROMPT, generated - 2 * IN_PROMPT, generated).to(torch.int16))
