"""Rotary embedding [1]: how fast each pair of a head's numbers turns.

[1] Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from headrace.errors import ModelError
from headrace.workers.engine.models.fields import Fields
from headrace.workers.engine.models.rope_scaling import Llama3, PerPair, Scaling, Slower, Yarn


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotary embedding of one model.

    Attributes:
        theta: base of the geometric series of frequencies.
        rotary_dim: numbers of a head that are rotated, even, >= 2.
        scaling: how the context is stretched, None where it is not.
    """

    theta: float
    rotary_dim: int
    scaling: Scaling | None = None

    @classmethod
    def parse(cls, fields: Fields, head_dim: int, max_positions: int) -> Self:
        """Read ``rope_parameters`` (transformers 5), or ``rope_theta`` and ``rope_scaling`` (before).

        Raises:
            ModelError: a kind of scaling or a parameter that this code does not know, a parameter is missing, or both
                forms are there and differ.
        """
        outer_theta = fields.find("rope_theta", float)
        fields.only("partial_rotary_factor", 1.0)
        before, now = fields.find("rope_scaling", dict), fields.find("rope_parameters", dict)
        if head_dim < 2 or head_dim % 2:
            raise ModelError(f"config.json: heads of {head_dim} numbers cannot be rotated in pairs")
        if before is not None and now is not None and before != now:
            raise ModelError("config.json: rope_scaling and rope_parameters say different things; keep one of them")
        inner = Fields(now or before or {}, "config.json: rope parameters")
        inner.only("partial_rotary_factor", 1.0)
        theta = inner.find("rope_theta", float) or outer_theta or 10000.0
        if theta <= 0:
            raise fields.refusal("rope_theta", theta)
        kind = inner.find("type", str)
        kind = inner.find("rope_type", str) or kind or "default"
        scaling = _scaling(kind, inner, head_dim, max_positions)
        inner.refuse_unknown()
        return cls(theta, head_dim, scaling)

    def inv_freq(self) -> torch.Tensor:
        """Radians a token, fp32 ``[rotary_dim / 2]``."""
        exponents = torch.arange(0, self.rotary_dim, 2, dtype=torch.float32) / self.rotary_dim
        inv_freq = 1.0 / self.theta**exponents
        return self.scaling.apply(inv_freq, self.theta) if self.scaling else inv_freq

    @property
    def scale(self) -> float:
        """What cosines and sines are multiplied by."""
        return self.scaling.attention_factor if self.scaling else 1.0


def _scaling(kind: str, fields: Fields, head_dim: int, max_positions: int) -> Scaling | None:
    readers: Mapping[str, Any] = {"linear": Slower, "llama3": Llama3, "yarn": Yarn, "longrope": PerPair}
    if kind == "default":
        fields.ignore("factor", "original_max_position_embeddings")
        return None
    if kind not in readers:
        # "dynamic" among them: its frequencies change as a text grows, and would not fit the keys written before.
        raise ModelError(f"config.json: rope type {kind!r} is none of default, {', '.join(readers)}")
    scaling: Scaling = readers[kind].parse(fields, head_dim, max_positions)
    return scaling
