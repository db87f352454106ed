"""Steps on a GPU: rows have places that stay, and a step's numbers go there by one copy."""

from collections.abc import Callable
from collections.abc import Sequence as Rows
from itertools import accumulate, takewhile

import torch
from torch import Tensor

from headrace.errors import DeviceLostError
from headrace.kernels.cuda_operations import PagedBatch, Queries
from headrace.kernels.rotary_kv import KVPages
from headrace.kernels.table import Table
from headrace.memory.kv_cache import KVCache
from headrace.memory.pages import PageCopy
from headrace.memory.staging import Staging
from headrace.workers.engine.decode_graphs import DecodeGraphs, padded_places
from headrace.workers.engine.device_sampling import DeviceSampler
from headrace.workers.engine.fusion import Chunk
from headrace.workers.engine.models.model import Model
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.runner import Draw
from headrace.workers.engine.sequence import Sequence


class DeviceSteps:
    """Model, memory and operations.

    Args:
        model: what to compute.
        kv_cache: where the rows' pages lie, in the order "heads".
        operations: the table that the model is written over.
        rows: what the device knows of the rows.
        sampler: draws.
        stream: what everything is launched on.
        max_tokens: tokens of a step at most.
        keep: keeps the memory of a step's results for good, by numbers of tokens and of sampled ones, as graphs want
            it; None: nothing is captured.

    Attributes:
        stream: as given.
    """

    def __init__(
        self,
        model: Model,
        kv_cache: KVCache,
        operations: Table[PagedBatch],
        rows: RowState,
        sampler: DeviceSampler,
        *,
        stream: torch.cuda.Stream,
        max_tokens: int,
        keep: Callable[[tuple[int, int]], None] | None = None,
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._operations = operations
        self._rows = rows
        self._sampler = sampler
        self.stream = stream
        max_rows = rows.page_table.shape[0]
        # Token ids, positions, rows; lengths, query starts and what is sampled; a little for each one's rounding up.
        self._staging = Staging(16 * (max_rows + max_tokens) + 16 * (max_rows + 1) + 256, rows.page_table.device)
        self._pages: dict[int, tuple[KVPages, ...]] = {}
        self._max_rows = max_rows
        self._graphs = None if keep is None else DecodeGraphs(self._forward, keep, stream)

    def copy(self, copies: Rows[PageCopy]) -> None:
        """Copy pages; see ``Steps``."""
        with torch.cuda.stream(self.stream):
            self._kv_cache.begin(copies)

    def compute(self, chunks: Rows[Chunk]) -> tuple[Draw, ...]:
        """Compute chunks together; see ``Steps``.

        Raises:
            DeviceLostError: the GPU cannot go on, in this step or any other.
        """
        try:
            with torch.cuda.stream(self.stream):
                return self._compute(chunks)
        except Exception as error:
            self._require_device(error)
            raise

    def _compute(self, chunks: Rows[Chunk]) -> tuple[Draw, ...]:
        batch, sampling = self.pack(chunks)
        captured = self._graphs if batch.queries is None else None
        logits = self._forward(batch) if captured is None else captured.run(batch)
        self._rows.advance([chunk.sequence for chunk in chunks], [chunk.num_tokens for chunk in chunks])
        if logits is None:
            return ()
        sampled = self._sampler.sample(logits[: len(sampling)], sampling)
        self._rows.draw(sampling, sampled.token_ids)
        return tuple(
            Draw(sequence, token_id, "" if valid else "no token has a finite logit", sampled.logprobs.get(index))
            for index, (sequence, token_id, valid) in enumerate(
                zip(sampling, sampled.token_ids, sampled.valid, strict=True)
            )
        )

    def _forward(self, batch: PagedBatch) -> Tensor | None:
        with self._operations.step(batch):
            return self._model.forward(batch)

    def pack(self, chunks: Rows[Chunk]) -> tuple[PagedBatch, list[Sequence]]:
        """Make a batch.

        Args:
            chunks: decoding rows first.

        Returns:
            The batch, and the rows whose next token its logits are for, in their order.
        """
        rows, put = self._rows, self._staging.put
        rows.enter([chunk.sequence for chunk in chunks])
        places = rows.index_of([chunk.sequence for chunk in chunks])
        num_decoding = sum(1 for _ in takewhile(lambda chunk: chunk.sequence.num_tokens_left == 1, chunks))
        num_places = 1 + max(places)
        if num_decoding == len(chunks) and self._graphs is not None:
            num_places = padded_places(num_places, self._max_rows)
        # Behind a token of every place, those of prompts: in the order of their places, as query starts want it.
        prompts = sorted(range(num_decoding, len(chunks)), key=places.__getitem__)
        num_first = num_places if num_decoding else 0
        token_ids: list[int] = []
        positions, owners, sampled = [-1] * num_first, list(range(num_first)), places[:num_decoding]
        lengths, chunk_lengths, num_queries = ([0] * num_places for _ in range(3))
        for place, chunk in zip(places, chunks[:num_decoding], strict=False):
            positions[place] = chunk.sequence.num_computed_tokens
            lengths[place] = positions[place] + 1
        for index in prompts:
            place, chunk = places[index], chunks[index]
            start, end = chunk.sequence.num_computed_tokens, chunk.sequence.num_computed_tokens + chunk.num_tokens
            token_ids += chunk.sequence.token_ids[start:end]
            positions += range(start, end)
            owners += [place] * chunk.num_tokens
            chunk_lengths[place], num_queries[place] = end, chunk.num_tokens
            if chunk.samples:
                sampled.append(num_first + len(token_ids) - 1)
        if num_decoding == len(chunks) and self._graphs is not None:
            # As many as a graph is captured for; logits that nobody wants mean nothing.
            sampled = sampled + [0] * (num_places - len(sampled))
        self._staging.begin()
        ids = put([0] * num_first + token_ids, torch.int64)
        at, of, wanted = put(positions, torch.int32), put(owners, torch.int32), put(sampled, torch.int32)
        decode_lengths = put(lengths, torch.int32) if num_decoding else None
        queries = None
        if token_ids:
            starts = put([0, *accumulate(num_queries)], torch.int32)
            queries = Queries(len(token_ids), starts, put(chunk_lengths, torch.int32), len(prompts))
        self._staging.send()
        # A decoding row's token is on the device already: it was drawn there.
        ids[:num_first].copy_(rows.last_token[:num_first], non_blocking=True)
        batch = PagedBatch(ids, at, wanted, of, decode_lengths, queries, self._paged(num_places))
        sampling = [chunk.sequence for chunk in chunks[:num_decoding]]
        return batch, sampling + [chunks[index].sequence for index in prompts if chunks[index].samples]

    def _paged(self, num_places: int) -> tuple[KVPages, ...]:
        """Every layer's pages, with a page table of so many rows."""
        if num_places not in self._pages:
            page_table = self._rows.page_table[:num_places]
            self._pages[num_places] = tuple(
                KVPages(*self._kv_cache.paged(layer), page_table) for layer in range(self._model.config.num_layers)
            )
        return self._pages[num_places]

    def _require_device(self, error: Exception) -> None:
        try:
            torch.cuda.synchronize(self.stream.device)
        except RuntimeError as lost:
            raise DeviceLostError(f"the GPU is lost: {lost}") from error
