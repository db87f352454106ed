"""The bytes of the key-value memory, in chunks of pages, and views of them.

Who may use which pages is decided by ``pages``; what is written there by ``kernels``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from headrace.memory.pages import PageCopy

#: What lies next to each other. "heads": a page is one piece that covers all layers, and a head's tokens in it lie
#: next to each other, as kernels that read page by page want it. "tokens": a chunk is one piece, in which each layer's
#: tokens follow each other, so that pages with consecutive numbers are one long run that one view shows.
PageOrder = Literal["tokens", "heads"]

#: Copies pages: given ``[1, num_pages, numbers of a page]``, and int32 ``[num_moves, 2]``, from and to; no page is
#: twice a target, or both a source and a target.
CopyPages = Callable[[Tensor, Tensor], None]


class Copy(Protocol):
    """From which page to which other one."""

    @property
    def source(self) -> int: ...  # noqa: D102
    @property
    def target(self) -> int: ...  # noqa: D102


class KVCache:
    """Keys and values of every layer, in pages.

    A slot is a token's place: slot ``page * page_size + offset``. Memory of our own is reserved, not touched: the
    operating system commits it when the first token is written, so an idle engine costs what its longest load so far
    has used.

    Args:
        num_layers: layers of the model.
        num_pages: pages of the memory; a page covers all layers.
        page_size: tokens of a page.
        num_kv_heads: heads of keys and of values.
        head_dim: numbers a head.
        dtype: of keys and values.
        order: what lies next to each other.
        chunk_pages: pages of a chunk; default: all are one.
        storage: uint8, ``num_bytes`` long, where they lie; default: memory of our own.
        copy_pages: moves whole pages of order "heads"; default: torch does, one by one.

    Attributes:
        page_size: tokens of a page.
        chunk_pages: pages of a chunk; runs of pages end where a chunk does.
        page_bytes: bytes of a page.
        storage: every number of the memory, in one dimension.
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
        chunk_pages: int | None = None,
        storage: Tensor | None = None,
        copy_pages: CopyPages | None = None,
    ) -> None:
        self.page_size = page_size
        self.chunk_pages = num_pages if chunk_pages is None else chunk_pages
        self._order = order
        self._num_layers = num_layers
        self._copy_pages = copy_pages
        numbers = 2 * num_layers * page_size * num_kv_heads * head_dim
        self.page_bytes = numbers * dtype.itemsize
        if num_pages % self.chunk_pages:
            raise ValueError(f"{num_pages} pages are not chunks of {self.chunk_pages}")
        if storage is None:
            storage = torch.empty(num_pages * self.page_bytes, dtype=torch.uint8)
        if storage.nbytes != num_pages * self.page_bytes:
            raise ValueError(f"{storage.nbytes} bytes do not hold {num_pages} pages of {self.page_bytes}")
        self.storage = flat = storage.view(dtype)
        if order == "heads":
            # [num_pages, num_layers, 2, num_kv_heads, page_size, head_dim]
            self._pages = flat.view(num_pages, num_layers, 2, num_kv_heads, page_size, head_dim)
            self._layers = tuple(self._pages.transpose(0, 1).unbind(0))
            self._paged = tuple(layer.unbind(1) for layer in self._layers)
            self._moves = torch.empty(64, 2, dtype=torch.int32, device=storage.device)
        else:
            self._chunk_slots = self.chunk_pages * page_size
            self._chunks_of = torch.empty(0, dtype=torch.int64)
            token = (num_kv_heads, head_dim)
            # [num_chunks, num_layers * 2, chunk_slots, num_kv_heads, head_dim]
            self._sides = flat.view(num_pages // self.chunk_pages, 2 * num_layers, self._chunk_slots, *token)
            self._layers = tuple(self._layer_view(layer) for layer in range(num_layers))

    @property
    def num_bytes(self) -> int:
        """What the memory takes once every slot has been used."""
        return self.storage.nbytes

    @property
    def layers(self) -> tuple[Tensor, ...]:
        """Each layer's keys and values: views.

        With order "heads" ``[num_pages, 2, num_kv_heads, page_size, head_dim]``; else
        ``[2, num_places, num_kv_heads, head_dim]``, where a token's place is what ``places`` says. Such a view's keys
        and values overlap, and so do layers; what is written at places of tokens does not.
        """
        return self._layers

    def places(self, slots: Tensor) -> Tensor:
        """Say where in ``layers`` tokens lie, for order "tokens".

        Args:
            slots: int64 of any shape, contiguous; overwritten.
        """
        if self._sides.shape[0] == 1:
            return slots
        if self._chunks_of.numel() < slots.numel():
            self._chunks_of = torch.empty(2 * slots.numel(), dtype=torch.int64)
        chunks = self._chunks_of[: slots.numel()].view(slots.shape)
        torch.div(slots, self._chunk_slots, rounding_mode="floor", out=chunks)
        # Between one chunk's tokens and the next chunk's lie the other layers and sides.
        return slots.add_(chunks, alpha=self._chunk_slots * (2 * self._num_layers - 1))

    def paged(self, index: int) -> tuple[Tensor, Tensor]:
        """Give one layer's keys and its values, both ``[num_pages, num_kv_heads, page_size, head_dim]``: views.

        Raises:
            ValueError: the order is "tokens", where pages of different chunks have no common stride.
        """
        if self._order != "heads":
            raise ValueError("pages in order of tokens are read as runs, not one by one")
        keys, values = self._paged[index]
        return keys, values

    def views(self, start: int, end: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """View consecutive slots of one chunk in every layer, without a copy; only with order "tokens".

        All layers are cut by one call a step and run: cutting them one by one would cost more host time than a small
        model's attention takes.

        Args:
            start: the first slot.
            end: the slot behind the last one.

        Returns:
            A layer each: keys and values, both of shape ``[1, num_kv_heads, end - start, head_dim]``.

        Raises:
            ValueError: the slots are not all in one chunk.
        """
        chunk, first = divmod(start, self._chunk_slots)
        last = end - chunk * self._chunk_slots
        if last > self._chunk_slots:
            raise ValueError(f"slots {start} to {end} are in two chunks of {self._chunk_slots}")
        flat = self._sides[chunk, :, first:last].transpose(1, 2).unsqueeze(1).unbind(0)
        return tuple(zip(flat[0::2], flat[1::2], strict=True))

    def begin(self, copies: Iterable[PageCopy]) -> None:
        """Begin pages as copies of others, in the order given."""
        if self._copy_pages is None:
            for copy in copies:
                self.copy(copy.source, copy.target, copy.num_tokens)
            return
        # What lies behind the shared tokens is copied with them, and written over before it is read.
        for group in _unordered(copy for copy in copies if copy.source != copy.target):
            self.move(group)

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first tokens of one page to another, in all layers."""
        self._tokens(target, num_tokens).copy_(self._tokens(source, num_tokens))

    def move(self, moves: Sequence[Copy]) -> None:
        """Copy whole pages, in all layers; no page is twice a target, or both a source and a target."""
        if not moves:
            return
        if self._copy_pages is None or self._order != "heads":
            for move in moves:
                self.copy(move.source, move.target, self.page_size)
            return
        if len(moves) > len(self._moves):
            # Room for more than now, so that it seldom grows.
            self._moves = torch.empty(2 * len(moves), 2, dtype=torch.int32, device=self._pages.device)
        pairs = self._moves[: len(moves)]
        numbers = [(move.source, move.target) for move in moves]
        # From page-locked memory, or the host would wait for the steps at work.
        pairs.copy_(torch.tensor(numbers, dtype=torch.int32, pin_memory=pairs.is_cuda), non_blocking=True)
        self._copy_pages(self._pages.flatten(1).unsqueeze(0), pairs)

    def _layer_view(self, layer: int) -> Tensor:
        num_chunks, num_sides, chunk_slots, num_kv_heads, head_dim = self._sides.shape
        token = num_kv_heads * head_dim
        num_places = ((num_chunks - 1) * num_sides + 1) * chunk_slots
        return self._sides.as_strided(
            (2, num_places, num_kv_heads, head_dim),
            (chunk_slots * token, token, head_dim, 1),
            self._sides.storage_offset() + 2 * layer * chunk_slots * token,
        )

    def _tokens(self, page: int, num_tokens: int) -> Tensor:
        if self._order == "heads":
            return self._pages[page, :, :, :, :num_tokens]
        chunk, first = divmod(page * self.page_size, self._chunk_slots)
        return self._sides[chunk, :, first : first + num_tokens]


def _unordered(copies: Iterable[Copy]) -> Iterator[list[Copy]]:
    """Part copies, which are to be done one after the other, into groups whose copies have no order."""
    group: list[Copy] = []
    touched: set[int] = set()
    targets: set[int] = set()
    for copy in copies:
        if copy.target in touched or copy.source in targets:
            yield group
            group, touched, targets = [], set(), set()
        group.append(copy)
        touched |= {copy.source, copy.target}
        targets.add(copy.target)
    if group:
        yield group
