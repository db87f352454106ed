"""A step's numbers on a GPU: those of rows that decode are made there, those of prompts brought by one copy."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headrace.kernels.kv_pages import KVPages
from headrace.kernels.paged_batch import PagedBatch, Queries
from headrace.kernels.row_state import NextTokens
from headrace.memory.kv_cache import KVCache
from headrace.memory.staging import Staging
from headrace.workers.engine.padded_size import PaddedSize
from headrace.workers.engine.plan import Chunk
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Packed:
    """A step that is ready to be computed.

    Attributes:
        batch: what the model computes.
        next_tokens: the part of it that rows which decode fill in on the device; None where none decodes.
        sampling: the rows whose next token its logits are for, in their order; nobody's logits may come in between.
        indices: where among the logits theirs are.
        places: int64 ``[num_sampled]``, of the logits' rows; -1 where they are nobody's.
    """

    batch: PagedBatch
    next_tokens: NextTokens | None
    sampling: tuple[Sequence, ...]
    indices: tuple[int, ...]
    places: Tensor


class Packer:
    """Makes batches.

    Args:
        rows: what the device knows of the rows.
        kv_cache: where their pages lie.
        num_layers: of the model.
        max_tokens: tokens of a step at most, one of every place among them.
        num_steps: that may be at work at once.
    """

    def __init__(self, rows: RowState, kv_cache: KVCache, num_layers: int, max_tokens: int, num_steps: int) -> None:
        self._page_table = rows.page_table
        max_rows, device = len(rows.position), rows.position.device
        # Token ids, positions, rows; lengths, query starts, what is sampled and for whom; and what rounding up takes.
        num_bytes = 16 * (max_rows + max_tokens) + 24 * (max_rows + 1) + 256
        self._staging = Staging(num_bytes, device, turns=num_steps)
        self._next_tokens = NextTokens.empty(max_rows, device)
        self._each = torch.arange(max_rows, dtype=torch.int32, device=device)
        self._layers = [kv_cache.paged(layer) for layer in range(num_layers)]
        self._pages: dict[int, tuple[KVPages, ...]] = {}

    def decoding(self, num_places: int) -> Packed:
        """The step in which a number of places compute a token each, whoever has them; the host sends nothing."""
        own, each = self._next_tokens[:num_places], self._each[:num_places]
        batch = PagedBatch(own.token_ids, own.positions, each, each, own.lengths, None, self._paged(num_places))
        if own.places is None:
            raise ValueError("every place of a device asks for its number")
        return Packed(batch, own, (), (), own.places)

    def mixed(self, chunks: Rows[Chunk], places: Rows[int], size: PaddedSize | None = None) -> Packed:
        """A step with tokens of prompts, behind a token of every place if any row decodes.

        Args:
            chunks: those that decode first; not all of them.
            places: of their rows.
            size: round the step up to it: steps of one size lie at the same addresses. Then every place has logits if
                any row samples, somebody's or not. Default: nothing is computed that nobody wants.
        """
        put, num_places = self._staging.put, 1 + max(places) if size is None else size.num_places
        num_decoding = sum(chunk.decodes for chunk in chunks)
        num_first = num_places if num_decoding else 0
        # In the order of their places, as query starts want it.
        prompts = sorted(range(num_decoding, len(chunks)), key=places.__getitem__)
        sampling = [*range(num_decoding), *(index for index in prompts if chunks[index].samples)]
        spans = [(places[index], chunks[index]) for index in prompts]
        counts = np.array([chunk.num_tokens for _, chunk in spans])
        ends = num_first + counts.cumsum()
        chunk_lengths, num_queries = np.zeros((2, num_places), dtype=np.int32)
        for place, chunk in spans:
            chunk_lengths[place], num_queries[place] = chunk.end, chunk.num_tokens
        first = np.zeros(num_first, dtype=np.int64)
        token_ids = [np.array(chunk.sequence.token_ids[chunk.start : chunk.end]) for _, chunk in spans]
        positions = [np.arange(chunk.start, chunk.end) for _, chunk in spans]
        owners = np.repeat([place for place, _ in spans], counts)
        last = [end - 1 for end, (_, chunk) in zip(ends.tolist(), spans, strict=True) if chunk.samples]
        num_tokens = int(counts.sum()) if size is None else size.num_tokens
        # Padding is at position -1 of the first place: nothing is written for it, and no row's tokens are attended to.
        padding = np.zeros(num_tokens - int(counts.sum()), dtype=np.int64)
        sampled, drawn_at = [*places[:num_decoding], *last], [places[index] for index in sampling]
        indices = tuple(range(len(sampling)))
        if size is not None and sampling:
            indices, tokens = tuple(drawn_at), dict(zip(drawn_at, sampled, strict=True))
            sampled = [tokens.get(place, 0) for place in range(num_places)]
            drawn_at = [place if place in tokens else -1 for place in range(num_places)]
        self._staging.begin()
        ids = put(np.concatenate((first, *token_ids, padding)), torch.int64)
        at = put(np.concatenate((first, *positions, padding - 1)), torch.int32)
        of = put(np.concatenate((np.arange(num_first), owners, padding)), torch.int32)
        wanted = put(sampled, torch.int32)
        drawn_for = put(drawn_at, torch.int64)
        starts = put(np.concatenate(([0], num_queries.cumsum())), torch.int32)
        lengths = put(chunk_lengths, torch.int32)
        self._staging.send()
        own = None
        if num_decoding:
            own = NextTokens(ids[:num_first], at[:num_first], self._next_tokens.lengths[:num_first])
        batch = PagedBatch(
            *(ids, at, wanted, of, None if own is None else own.lengths),
            Queries(num_tokens, starts, lengths, len(prompts) if size is None else size.num_chunks),
            self._paged(num_places),
        )
        return Packed(batch, own, tuple(chunks[index].sequence for index in sampling), indices, drawn_for)

    def _paged(self, num_places: int) -> tuple[KVPages, ...]:
        """Every layer's pages, with a page table of so many rows."""
        if num_places not in self._pages:
            page_table = self._page_table[:num_places]
            self._pages[num_places] = tuple(KVPages(*paged, page_table) for paged in self._layers)
        return self._pages[num_places]
