"""The bytes of the key-value memory: one tensor for all layers, and views of an extent.

Who may use which slots is decided by ``extents``; what is written there by ``kernels``.
"""

import torch

from headrace.memory.extents import Extent


class KVCache:
    """Keys and values of every layer and every token slot.

    The memory is reserved, not touched: the operating system commits a page when the first token is written into
    it, so an idle engine costs what its longest load so far has used, never more than ``num_bytes``.

    Args:
        num_layers: layers of the model.
        num_tokens: token slots a layer.
        num_kv_heads: heads of keys and of values.
        head_dim: numbers a head.
        dtype: of keys and values.

    Attributes:
        storage: shape ``[num_layers, 2, num_tokens, num_kv_heads, head_dim]``; index 0 of the second dimension
            holds keys, 1 values.
    """

    def __init__(
        self, *, num_layers: int, num_tokens: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> None:
        self.storage = torch.empty((num_layers, 2, num_tokens, num_kv_heads, head_dim), dtype=dtype)
        self._layers = self.storage.unbind(0)

    @property
    def num_bytes(self) -> int:
        """What the memory takes once every slot has been used."""
        return self.storage.nbytes

    def layer(self, index: int) -> torch.Tensor:
        """Give one layer's keys and values: a view, shape ``[2, num_tokens, num_kv_heads, head_dim]``."""
        return self._layers[index]

    def views(self, extent: Extent, num_tokens: int) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """View the first tokens of an extent in every layer, without a copy.

        All layers are cut by one call a step and row: cutting them one by one would cost more host time than a
        small model's attention takes.

        Args:
            extent: the row's slots.
            num_tokens: how many of them to show, 1 <= num_tokens <= extent.num_tokens.

        Returns:
            A layer each: keys and values, both of shape ``[1, num_kv_heads, num_tokens, head_dim]``.
        """
        rows = self.storage[:, :, extent.start : extent.start + num_tokens].transpose(2, 3).unsqueeze(2)
        flat = rows.flatten(0, 1).unbind(0)
        return tuple(zip(flat[0::2], flat[1::2], strict=True))
