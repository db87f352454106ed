"""Rotary embedding [1]: how fast each pair of a head's numbers turns.

[1] Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from headrace.errors import ModelError


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's stretching of the context: slow turns are slowed by ``factor``, fast ones kept, those between mixed.

    Attributes:
        factor: by which wavelengths beyond ``original_positions / low_freq_factor`` are stretched.
        low_freq_factor: see ``factor``.
        high_freq_factor: wavelengths below ``original_positions / high_freq_factor`` stay.
        original_positions: context length before stretching.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int

    def apply(self, inv_freq: torch.Tensor) -> torch.Tensor:
        """Stretch frequencies, any shape."""
        turns = self.original_positions * inv_freq / (2 * math.pi)
        keep = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        keep = keep.clamp(0, 1)
        return keep * inv_freq + (1 - keep) * inv_freq / self.factor


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotary embedding of one model.

    Attributes:
        theta: base of the geometric series of frequencies.
        head_dim: numbers that are rotated, all of a head.
        linear_factor: positions are divided by it.
        llama3: scaling, if the model has it.
    """

    theta: float
    head_dim: int
    linear_factor: float = 1.0
    llama3: Llama3Scaling | None = None

    @classmethod
    def parse(cls, config: Mapping[str, Any], head_dim: int) -> Self:
        """Read ``rope_parameters`` (transformers 5), or ``rope_theta`` and ``rope_scaling`` (before).

        Raises:
            ModelError: a kind of scaling that this code does not know, or a parameter is missing.
        """
        fields = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = fields.get("rope_type", fields.get("type", "default"))
        theta = fields.get("rope_theta", config.get("rope_theta", 10000.0))
        partial = fields.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
        if partial != 1.0:
            raise ModelError(f"config.json: partial_rotary_factor {partial!r} is not supported")
        try:
            if kind == "default":
                return cls(theta, head_dim)
            if kind == "linear":
                return cls(theta, head_dim, linear_factor=fields["factor"])
            if kind == "llama3":
                names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
                return cls(theta, head_dim, llama3=Llama3Scaling(*(fields[name] for name in names)))
        except KeyError as error:
            raise ModelError(f"config.json: rope type {kind!r} lacks {error}") from error
        raise ModelError(f"config.json: rope type {kind!r} is none of default, linear, llama3")

    def inv_freq(self) -> torch.Tensor:
        """Radians a token, fp32 ``[head_dim / 2]``."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        inv_freq = 1.0 / self.theta**exponents / self.linear_factor
        return self.llama3.apply(inv_freq) if self.llama3 else inv_freq
