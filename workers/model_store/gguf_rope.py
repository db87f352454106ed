"""How a GGUF file says that positions are stretched."""

from dataclasses import dataclass

import numpy as np

from headrace.errors import ModelError
from headrace.workers.model_store.gguf_file import GgufFile, GgufTensor

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor by which Llama 3 files stretch their rotations, a factor a pair; it says shape, not weights."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How positions are stretched, in Hugging Face's names.

    Attributes:
        kind: "linear", "yarn" or "longrope" (a factor a pair).
        factor: by which all turns, or the slowest, are slowed; 1 where pairs have their own.
        original_context: context length before stretching, None where it does not matter.
        pair_factors: a factor a pair of a head's numbers; empty but for "longrope".
    """

    kind: str
    factor: float
    original_context: int | None = None
    pair_factors: tuple[float, ...] = ()


def read_rope_scaling(
    file: GgufFile, architecture: str, head_dim: int, pair_factors: GgufTensor | None
) -> RopeScaling | None:
    """Read how the model's positions are stretched.

    Args:
        file: the file.
        architecture: prefix of its keys.
        head_dim: numbers a head.
        pair_factors: the tensor ``ROPE_FACTORS``, None where there is none.

    Returns:
        None where they are not.

    Raises:
        ModelError: a kind that is not supported, or something is missing or contradicts another.
    """
    prefix = f"{architecture}.rope.scaling"
    kind = file.find(f"{prefix}.type", str)
    factor = file.find(f"{prefix}.factor", float) or file.find(f"{architecture}.rope.scale_linear", float)
    is_scaled = kind != "none" and (kind, factor) != (None, None)
    if pair_factors is not None:
        if architecture.startswith("gpt"):
            raise ModelError(f"{file.path}: {ROPE_FACTORS} is not supported in a {architecture}")
        if is_scaled or pair_factors.shape != (head_dim // 2,):
            raise ModelError(f"{file.path}: {ROPE_FACTORS} does not fit the heads, or {prefix}.type is given as well")
        values = pair_factors.dequantise(np.arange(1))[0]
        return RopeScaling(
            "longrope", 1.0, file.get(f"{architecture}.context_length", int), tuple(map(shortest, values))
        )
    if not is_scaled:
        return None
    if factor is None or kind not in (None, "linear", "yarn"):
        raise ModelError(f"{file.path} scales its positions by {prefix}.type {kind!r}, which is not supported")
    if kind == "yarn":
        original = file.get(f"{prefix}.original_context_length", int)
        return RopeScaling("yarn", shortest(factor), original)
    return RopeScaling("linear", shortest(factor))


def shortest(value: float) -> float:
    """Return the shortest decimal number that float32 rounds to ``value``."""
    # GGUF holds float32: 9.999999747378752e-06 is the nearest one to 1e-05, which is what the model's maker wrote.
    return float(str(np.float32(value)))
