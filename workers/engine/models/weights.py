"""A checkpoint's tensors, as a model wants them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.table import Linear, Packer
from headrace.workers.engine.checkpoint import Tensors


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm's weights, both ``[hidden]``."""

    weight: Tensor
    bias: Tensor


class Weights:
    """Loads under one prefix, for one table and one dtype.

    Args:
        checkpoint: the tensors.
        operations: the table that the products are laid out for.
        dtype: of what is given.
        prefix: of all names, with its dot.
    """

    def __init__(self, checkpoint: Tensors, operations: Packer, dtype: torch.dtype, prefix: str = "") -> None:
        self._checkpoint = checkpoint
        self._operations = operations
        self._dtype = dtype
        self._prefix = prefix

    def under(self, prefix: str) -> "Weights":
        """Go on under a longer prefix."""
        return Weights(self._checkpoint, self._operations, self._dtype, self._prefix + prefix)

    def tensor(self, name: str, *shape: int) -> Tensor:
        """Give one tensor.

        Raises:
            ModelError: there is none, or it has another shape.
        """
        return self._operations.hold(self._checkpoint.tensor(self._prefix + name, shape, self._dtype))

    def linear(self, sizes: Mapping[str, int], num_inputs: int, *, bias: bool) -> Linear:
        """Give products of one input as one: their weights under each other.

        Args:
            sizes: number of outputs by name, in their order; ``.weight`` and ``.bias`` are added to the names.
            num_inputs: width of the input.
            bias: they have biases.

        Raises:
            ModelError: a tensor is missing, or has another shape.
        """
        weights = [self.tensor(f"{name}.weight", size, num_inputs) for name, size in sizes.items()]
        biases = [self.tensor(f"{name}.bias", size) for name, size in sizes.items()] if bias else []
        return self._operations.pack_linear(_stack(weights), _stack(biases) if bias else None)

    def transposed_linear(self, name: str, num_outputs: int, num_inputs: int) -> Linear:
        """Give a product with a bias whose weight is stored ``[num_inputs, num_outputs]``, as GPT-2's are.

        Raises:
            ModelError: a tensor is missing, or has another shape.
        """
        weight = self.tensor(f"{name}.weight", num_inputs, num_outputs)
        return self._operations.pack_linear(weight.t(), self.tensor(f"{name}.bias", num_outputs))

    def norm(self, name: str, hidden: int) -> Norm:
        """Give a layer norm's weights.

        Raises:
            ModelError: a tensor is missing, or has another shape.
        """
        return Norm(self.tensor(f"{name}.weight", hidden), self.tensor(f"{name}.bias", hidden))


def _stack(tensors: list[Tensor]) -> Tensor:
    """Put weights of one input under each other; a single one stays where the file is mapped."""
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0]
