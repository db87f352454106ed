"""How rotary embeddings are stretched over contexts longer than the one a model was first trained for."""

import math
from dataclasses import dataclass
from typing import Protocol, Self

import torch

from headrace.errors import ModelError
from headrace.workers.engine.models.fields import Fields


class Scaling(Protocol):
    """A way to stretch."""

    @property
    def attention_factor(self) -> float:
        """What cosines and sines are multiplied by."""

    def apply(self, inv_freq: torch.Tensor, theta: float) -> torch.Tensor:
        """Stretch frequencies.

        Args:
            inv_freq: radians a token, fp32 ``[rotary_dim / 2]``.
            theta: their base.
        """


@dataclass(frozen=True, slots=True)
class Slower:
    """Every turn is slowed alike: positions are divided by ``factor``."""

    factor: float
    attention_factor: float = 1.0

    @classmethod
    def parse(cls, fields: Fields, head_dim: int, max_positions: int) -> Self:
        """Read; the other arguments are not needed."""
        fields.ignore("original_max_position_embeddings")
        return cls(fields.positive("factor", float))

    def apply(self, inv_freq: torch.Tensor, theta: float) -> torch.Tensor:
        """Stretch."""
        return inv_freq / self.factor


@dataclass(frozen=True, slots=True)
class Llama3:
    """Llama 3.1's: slow turns are slowed by ``factor``, fast ones kept, those between mixed.

    Attributes:
        factor: by which wavelengths beyond ``original_positions / low_freq_factor`` are stretched.
        low_freq_factor: see ``factor``.
        high_freq_factor: wavelengths below ``original_positions / high_freq_factor`` stay.
        original_positions: context length before stretching.
        attention_factor: 1.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int
    attention_factor: float = 1.0

    @classmethod
    def parse(cls, fields: Fields, head_dim: int, max_positions: int) -> Self:
        """Read; without an original length, it is the model's longest row."""
        return cls(
            fields.positive("factor", float),
            fields.positive("low_freq_factor", float),
            fields.positive("high_freq_factor", float),
            fields.positive("original_max_position_embeddings", int, max_positions),
        )

    def apply(self, inv_freq: torch.Tensor, theta: float) -> torch.Tensor:
        """Stretch."""
        turns = self.original_positions * inv_freq / (2 * math.pi)
        keep = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        keep = keep.clamp(0, 1)
        return keep * inv_freq + (1 - keep) * inv_freq / self.factor


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN [1]: as Llama 3.1's, but mixed along the pairs' indices, and attention is sharpened.

    [1] Peng et al., YaRN: Efficient Context Window Extension of Large Language Models, 2023.

    Attributes:
        factor: by which the slowest turns are slowed.
        beta_fast: pairs that turn more often than this in the original context stay.
        beta_slow: pairs that turn less often are slowed by ``factor``.
        truncate: the two limits are widened to whole indices.
        original_positions: context length before stretching.
        attention_factor: what cosines and sines are multiplied by.
    """

    factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool
    original_positions: int
    attention_factor: float

    @classmethod
    def parse(cls, fields: Fields, head_dim: int, max_positions: int) -> Self:
        """Read; without an original length, it is the model's longest row."""
        original_positions = fields.positive("original_max_position_embeddings", int, max_positions)
        factor = fields.positive("factor", float, max_positions / original_positions)
        over, under = fields.find("mscale", float), fields.find("mscale_all_dim", float)
        default = _sharpening(factor, over) / _sharpening(factor, under) if over and under else _sharpening(factor)
        return cls(
            factor,
            fields.find("beta_fast", float) or 32.0,
            fields.find("beta_slow", float) or 1.0,
            fields.get("truncate", bool, True),
            original_positions,
            fields.get("attention_factor", float, default),
        )

    def apply(self, inv_freq: torch.Tensor, theta: float) -> torch.Tensor:
        """Stretch."""
        rotary_dim = 2 * len(inv_freq)

        def index_of(num_turns: float) -> float:
            # Solves original_positions * theta ** (-2 * index / rotary_dim) = 2 * pi * num_turns.
            length = self.original_positions / (2 * math.pi * num_turns)
            return rotary_dim * math.log(length) / (2 * math.log(theta))

        first, last = index_of(self.beta_fast), index_of(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, rotary_dim - 1)
        # The published code parts equal limits by a thousandth rather than divide by zero.
        slowed = (torch.arange(len(inv_freq), dtype=torch.float32) - first) / ((last - first) or 0.001)
        slowed = slowed.clamp(0, 1)
        return slowed * inv_freq / self.factor + (1 - slowed) * inv_freq


@dataclass(frozen=True, slots=True)
class PerPair:
    """Every pair has a factor of its own; GGUF files of Llama 3 say it so, and "longrope" does.

    Attributes:
        factors: by which the turns of each pair are slowed, ``rotary_dim / 2`` of them.
        attention_factor: what cosines and sines are multiplied by.
    """

    factors: tuple[float, ...]
    attention_factor: float

    @classmethod
    def parse(cls, fields: Fields, head_dim: int, max_positions: int) -> Self:
        """Read; factors that differ between short and long texts are refused: a text may grow from one to the other.

        Raises:
            ModelError: they do, or their number does not fit.
        """
        short, long = fields.get("short_factor", list), fields.get("long_factor", list)
        if short != long:
            raise ModelError(
                "config.json: rope type 'longrope' with a short_factor unlike long_factor is not supported"
            )
        if len(short) != head_dim // 2:
            raise ModelError(f"config.json: {len(short)} short_factor for {head_dim // 2} pairs of a head")
        fields.ignore("original_max_position_embeddings", "factor")
        return cls(tuple(map(float, short)), fields.get("attention_factor", float))

    def apply(self, inv_freq: torch.Tensor, theta: float) -> torch.Tensor:
        """Stretch."""
        return inv_freq / torch.tensor(self.factors, dtype=torch.float32)


def _sharpening(factor: float, strength: float = 1.0) -> float:
    return 0.1 * strength * math.log(factor) + 1.0 if factor > 1 else 1.0
