"""Checkpoints that are no files: weights of a model in memory, or random ones of any shape."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from headrace.errors import ModelError


class StateDict:
    """A checkpoint over a model's ``state_dict``.

    Args:
        tensors: by the names that files would have.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Give one tensor.

        Raises:
            ModelError: there is no such tensor, or it has another shape.
        """
        found = self._tensors.get(name)
        if found is None or found.shape != shape:
            raise ModelError(f"no tensor {name!r} of shape {shape}")
        return found.to(dtype)


class RandomWeights:
    """A checkpoint that has every tensor: normal numbers, which depend on the name alone; norms scale by about 1.

    Args:
        device: where they are drawn.
        spread: standard deviation.
    """

    def __init__(self, device: torch.device, spread: float = 0.02) -> None:
        self._device = device
        self._spread = spread

    def __contains__(self, name: str) -> bool:
        return True

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Draw one tensor."""
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little")
        generator = torch.Generator(self._device).manual_seed(seed)
        mean = float(len(shape) == 1 and name.endswith("weight"))
        drawn = torch.empty(shape, dtype=dtype, device=self._device)
        return drawn.normal_(mean, self._spread, generator=generator)
