"""The bytes of the key-value memory: one tensor for all layers and pages, and views of it.

Who may use which pages is decided by ``pages``; what is written there by ``kernels``.
"""

from typing import Literal

import torch

#: What lies next to each other in a page. "heads": a head's tokens, as kernels that read page by page want it.
#: "tokens": a token's heads, so that pages with consecutive numbers are one long run of tokens, which one view shows.
PageOrder = Literal["tokens", "heads"]


class KVCache:
    """Keys and values of every layer, in pages.

    A slot is a token's place: slot ``page * page_size + offset``. The memory is reserved, not touched: the operating
    system commits it when the first token is written, so an idle engine costs what its longest load so far has used.

    Args:
        num_layers: layers of the model.
        num_pages: pages of the memory; a page covers all layers.
        page_size: tokens of a page.
        num_kv_heads: heads of keys and of values.
        head_dim: numbers a head.
        dtype: of keys and values.
        order: what lies next to each other; ``paged`` shows the same shape for both.

    Attributes:
        page_size: tokens of a page.
        storage: ``[num_layers, 2, num_pages, page_size, num_kv_heads, head_dim]``, or with order "heads"
            ``[num_layers, 2, num_pages, num_kv_heads, page_size, head_dim]``; index 0 of the second dimension holds
            keys, 1 values.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        order: PageOrder = "tokens",
    ) -> None:
        page = (page_size, num_kv_heads) if order == "tokens" else (num_kv_heads, page_size)
        self.page_size = page_size
        self._order = order
        self.storage = torch.empty((num_layers, 2, num_pages, *page, head_dim), dtype=dtype)
        self._layers = self.storage.flatten(2, 3).unbind(0) if order == "tokens" else self.storage.unbind(0)

    @property
    def num_bytes(self) -> int:
        """What the memory takes once every slot has been used."""
        return self.storage.nbytes

    @property
    def layers(self) -> tuple[torch.Tensor, ...]:
        """Each layer's keys and values: views.

        ``[2, num_slots, num_kv_heads, head_dim]``, or with order "heads"
        ``[2, num_pages, num_kv_heads, page_size, head_dim]``.
        """
        return self._layers

    def paged(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Give one layer's keys and its values, both ``[num_pages, num_kv_heads, page_size, head_dim]``: views."""
        pages = self.storage[index]
        keys, values = (pages.transpose(2, 3) if self._order == "tokens" else pages).unbind(0)
        return keys, values

    def views(self, start: int, end: int) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """View consecutive slots in every layer, without a copy; only with order "tokens".

        All layers are cut by one call a step and run: cutting them one by one would cost more host time than a small
        model's attention takes.

        Args:
            start: the first slot.
            end: the slot behind the last one.

        Returns:
            A layer each: keys and values, both of shape ``[1, num_kv_heads, end - start, head_dim]``.
        """
        runs = self.storage.flatten(2, 3)[:, :, start:end].transpose(2, 3).unsqueeze(2)
        flat = runs.flatten(0, 1).unbind(0)
        return tuple(zip(flat[0::2], flat[1::2], strict=True))

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first tokens of one page to another, in all layers."""
        dim = 2 if self._order == "tokens" else 3
        self.storage[:, :, target].narrow(dim, 0, num_tokens).copy_(
            self.storage[:, :, source].narrow(dim, 0, num_tokens)
        )
