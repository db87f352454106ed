"""What every family gives the engine."""

from typing import Protocol

import torch
from torch import Tensor

from headrace.kernels.table import Batch


class Shape(Protocol):
    """What the engine must know of a model's configuration.

    Attributes:
        vocab_size: tokens in the vocabulary.
        hidden_size: width of the residual stream.
        intermediate_size: width inside the MLP.
        num_layers: transformer blocks.
        num_kv_heads: heads of keys and values.
        head_dim: numbers a head.
        max_positions: longest row that the model was made for, prompt and output.
    """

    @property
    def vocab_size(self) -> int: ...  # noqa: D102
    @property
    def hidden_size(self) -> int: ...  # noqa: D102
    @property
    def intermediate_size(self) -> int: ...  # noqa: D102
    @property
    def num_layers(self) -> int: ...  # noqa: D102
    @property
    def num_kv_heads(self) -> int: ...  # noqa: D102
    @property
    def head_dim(self) -> int: ...  # noqa: D102
    @property
    def max_positions(self) -> int: ...  # noqa: D102


class Model(Protocol):
    """A model's weights and its forward pass, over the table of operations.

    Attributes:
        config: its shape.
        dtype: of weights and activations.
    """

    @property
    def config(self) -> Shape: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102

    def forward(self, batch: Batch) -> Tensor | None:
        """Compute a batch, and write its keys and values.

        Args:
            batch: the tokens; ``num_tokens`` in all.

        Returns:
            Logits of the sampled tokens, ``[num_sampled, vocab]``, in the model's dtype; None where none are wanted.
        """
